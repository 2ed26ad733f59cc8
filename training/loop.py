"""The one training loop: seeded, resumable bit for bit, with averaged weights and a log of JSON lines.

Step k draws from a generator seeded by (seed, stage, k), so nothing random is carried from step to step: a run that
was interrupted, by a signal or by `kill -9`, continues from its checkpoint exactly as if it had not been, on the same
machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from streaming_core.atomic import atomic_write
from streaming_core.errors import SettingsError

from .layout import Weights, write_weights
from .muon import Muon, is_matrix
from .task import Task

MEASURED_STEPS = 12
"""Steps after which a time limit is turned into a number of steps; the first two, which warm up, do not count."""


@dataclass(frozen=True)
class Recipe:
    """How weights are updated: AdamW, linear warm-up, constant for a share of the steps, then a cosine down.

    `matrix_rate`: learning rate of Muon, which then takes the matrices; 0 leaves everything to AdamW.
    """

    learning_rate: float = 1.2e-3
    matrix_rate: float = 0.0
    warmup_steps: int = 100
    constant_share: float = 0.6
    final_share: float = 0.03
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average_decay: float = 0.995
    seed: int = 0

    def share(self, step: int, steps: int | None) -> float:
        """Of the full learning rate, at step `step` (from 0) of `steps`.

        While those are unknown, warm-up and constant part only.
        """
        share = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if steps is None:
            return share
        decayed = (step / steps - self.constant_share) / (1 - self.constant_share)
        cosine = (1 + math.cos(math.pi * min(1.0, max(0.0, decayed)))) / 2
        return share * (self.final_share + (1 - self.final_share) * cosine)

    def optimizers(self, parameters: Iterable[nn.Parameter]) -> list[torch.optim.Optimizer]:
        """`full_rate` of every group is what `share` is a share of."""
        matrices, rest = [], []
        for parameter in parameters:
            (matrices if self.matrix_rate and is_matrix(parameter) else rest).append(parameter)
        group = {"params": rest, "full_rate": self.learning_rate}
        made = [torch.optim.AdamW([group], lr=0.0, betas=(0.9, 0.99), weight_decay=self.weight_decay)]
        if matrices:
            group = {"params": matrices, "full_rate": self.matrix_rate}
            made.append(Muon([group], lr=0.0, weight_decay=self.weight_decay))
        return made


@dataclass
class Progress:
    """Where a run stands: steps done, steps in all (None until a time limit has become a number), seconds spent."""

    step: int = 0
    steps: int | None = None
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return self.steps is not None and self.step >= self.steps


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    digest = hashlib.sha256(f"{stage}/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Run:
    """A task in a folder: `STAGE.pt` (checkpoint), `STAGE.jsonl` (log), `STAGE.safetensors` (averaged weights)."""

    def __init__(self, task: Task, folder: Path, recipe: Recipe):
        self.task, self.folder, self.recipe = task, folder, recipe
        self.progress = Progress()
        self.named = dict(task.network.named_parameters())
        self.optimizers = recipe.optimizers(self.named.values())
        self.average = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        folder.mkdir(parents=True, exist_ok=True)
        if self.path("pt").is_file():
            self._resume()

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.task.stage}.{suffix}"

    def train(
        self,
        steps: int | None = None,
        minutes: float | None = None,
        checkpoint_minutes: float = 5.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Train to the end, or until `stopped()`; either way the last act is a checkpoint.

        `steps` is how many there are in all. `minutes` is a limit instead: the first steps are timed and their number
        is fixed from then on, also for resumed runs. A resumed run keeps the number that it was begun with.
        """
        if (steps is None) == (minutes is None):
            raise SettingsError("give either a number of steps or of minutes")
        progress = self.progress
        progress.steps = progress.steps or steps
        saved = counted = time.monotonic()
        timed: list[float] = []
        self.task.network.train()
        while not progress.finished and not stopped():
            entry = self._step()
            now = time.monotonic()
            progress.seconds, counted = progress.seconds + now - counted, now
            self._log({**entry, "seconds": round(progress.seconds, 2)})
            timed.append(now)
            if progress.steps is None and len(timed) == MEASURED_STEPS:
                each = (timed[-1] - timed[1]) / (len(timed) - 2)
                left = 60 * minutes - progress.seconds
                progress.steps = max(progress.step + round(left / each), 2 * self.recipe.warmup_steps)
                self._log({"steps": progress.steps, "seconds_per_step": round(each, 4)})
            if now - saved >= 60 * checkpoint_minutes and not progress.finished:
                self.save()
                saved = counted = time.monotonic()
        self.save()
        return progress

    def _step(self) -> dict[str, float]:
        """One update; what the log says of it, with the processor seconds that it took."""
        began = time.process_time()
        progress, recipe = self.progress, self.recipe
        share = recipe.share(progress.step, progress.steps)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = share * group["full_rate"]
        loss = self.task.loss(step_generator(recipe.seed, self.task.stage, progress.step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {progress.step} is {loss.item()}; lower the learning rate")
        for parameter in self.named.values():
            parameter.grad = None
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.named.values(), recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        progress.step += 1
        # The first weights mean nothing, so the average starts short and grows to its full length.
        keep = min(recipe.average_decay, (1 + progress.step) / (10 + progress.step))
        for name, parameter in self.named.items():
            self.average[name].lerp_(parameter.detach(), 1 - keep)
        used = round(time.process_time() - began, 3)
        return {"loss": loss.item(), "rate": share * recipe.learning_rate, "norm": norm.item(), "processor": used}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its averaged weights, in evaluation mode."""
        own = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self._put(self.average)
        self.task.network.eval()
        try:
            yield
        finally:
            self._put(own)
            self.task.network.train()

    @torch.no_grad()
    def _put(self, values: Weights) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(values[name])

    def save(self) -> None:
        """Measure, and write checkpoint and averaged weights."""
        with self.averaged():
            self._log({"measured": self.task.measure()})
            write_weights(self.path("safetensors"), self.task.weights())
        state = {
            "settings": self._settings(),
            "progress": asdict(self.progress),
            "network": {name: parameter.detach() for name, parameter in self.named.items()},
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic_write(self.path("pt")) as temporary:
            torch.save(state, temporary)

    def _settings(self) -> str:
        return json.dumps({**asdict(self.recipe), **self.task.settings()}, sort_keys=True)

    def _resume(self) -> None:
        state = torch.load(self.path("pt"), map_location="cpu", weights_only=True)
        if state["settings"] != self._settings():
            raise SettingsError(
                f"{self.path('pt')} was begun with {state['settings']}, not {self._settings()}; "
                "use the same settings or another folder"
            )
        self.progress = Progress(**state["progress"])
        self._put(state["network"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._forget_later_lines()

    def _forget_later_lines(self) -> None:
        """A killed run has logged steps that will now be made again, and maybe half a line."""
        if not self.path("jsonl").is_file():
            return
        kept = []
        for line in self.path("jsonl").read_text("utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] <= self.progress.step:
                    kept.append(line + "\n")
        with atomic_write(self.path("jsonl")) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def _log(self, entry: dict) -> None:
        with self.path("jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": self.progress.step, **entry}) + "\n")


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

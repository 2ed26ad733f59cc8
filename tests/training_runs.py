"""What the tests of every training stage do: train a miniature, keep it as it was half way, compare two runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from training.loop import Recipe, Run, read_log, step_generator

STEPS, BREAK = 20, 10


class Trained(NamedTuple):
    """A stage that was trained without a break: its loss before and after, its folder, and that as it was half way."""

    task: object
    before: float
    after: float
    folder: Path
    half_way: Path


@contextmanager
def one_thread() -> Iterator[None]:
    """Miniatures are too small for two: where others use the machine, threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loss_of(task, draws: int = 6) -> float:
    """Over fixed draws that no step uses."""
    with torch.no_grad():
        return sum(task.loss(step_generator(0, "judge", k)).item() for k in range(draws)) / draws


def train(task, folder: Path, half_way: Path, recipe: Recipe, draws: int = 6) -> Trained:
    """20 steps in `folder`, which is copied to `half_way` (not there yet) after ten; judged by `draws` draws."""
    run, before = Run(task, folder, recipe), loss_of(task, draws)

    def keep() -> bool:
        if run.progress.step == BREAK:
            run.save()
            shutil.copytree(folder, half_way)
        return False

    progress = run.train(steps=STEPS, stopped=keep)
    assert progress.finished and progress.step == STEPS
    return Trained(task, before, loss_of(task, draws), folder, half_way)


def go_on(make_task: Callable[[], object], half_way: Path, recipe: Recipe) -> None:
    """From step 10 to the end, by objects that know nothing of the rest."""
    torch.rand(3)  # nothing may depend on the global generator
    run = Run(make_task(), half_way, recipe)
    assert run.progress.step == BREAK
    run.train(steps=STEPS)


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(one: Path, two: Path, stage: str) -> None:
    first, second = (torch.load(folder / f"{stage}.pt", weights_only=True) for folder in (one, two))
    for part in ("network", "average", "optimizers", "settings"):
        assert same(first[part], second[part]), part
    assert same(load_file(one / f"{stage}.safetensors"), load_file(two / f"{stage}.safetensors"))
    logs = [read_log(folder / f"{stage}.jsonl") for folder in (one, two)]
    losses = [[(entry["step"], entry["loss"]) for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, STEPS + 1))

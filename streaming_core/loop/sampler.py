"""What a model family brings to the chunk loop: the interface that all chunk samplers derive from.

Write a family by deriving from `ChunkSampler` and filling in what is abstract; everything else has a default that is
right for a family that continues the last frames of a video. What lies around any family (color anchoring, a perturbed
tail) derives from `WrappedSampler`, which hands every question on to the sampler inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..errors import SettingsError
from .chunk import Chunk
from .latent_layout import LatentLayout
from .plan import VideoPlan
from .state import Anchor, ChunkResult, VideoState

if TYPE_CHECKING:
    from typing_extensions import Self

Size = tuple[int, int]
"""Height and width in pixels."""


class Progress(Protocol):
    """A progress bar that counts sampling steps."""

    def advance(self, steps: int = 1, preview: Any = None) -> None:
        """Move the bar by `steps`."""

    def sampler_callback(self, model: Any) -> Any:
        """A callback for the family's sampler that moves the bar by one per step."""


@dataclass(frozen=True)
class StepMemory:
    """What one sampling step takes on its device, in bytes.

    Attributes:
        least: activations of one half of guidance, with the weights loaded part by part.
        whole: both halves and all weights.
        device_total: memory of the device; None where it computes in RAM.
    """

    least: int
    whole: int
    device_total: int | None


@dataclass(frozen=True)
class StepWork:
    """What one sampling step computes: `calls` of the network (the halves of guidance count one each) of `flops`."""

    calls: int
    flops: int


class ChunkSampler(ABC):
    """How one model family makes a chunk. Frames are `[F, 3, H, W]` in [0, 1]; latents are the model's own.

    Instances are frozen: all that changes from chunk to chunk comes as an argument.
    """

    family: ClassVar[str]
    """Name of the family, which the run folder keeps."""
    starts_from: ClassVar[frozenset[str]] = frozenset({"image", "frames"})
    """What it can begin with: "prompt", "image", "frames"."""
    follows: ClassVar[frozenset[str]] = frozenset()
    """Cues of a plan that it obeys: "prompt", "cam_strength", "anchor_strength", "motion". Every family obeys seeds."""
    averages_anchors: ClassVar[bool] = False
    """Whether several anchor frames may be given."""
    remembers_anchor: ClassVar[bool] = True
    """Whether the anchor decides anything; one that is given to a family without memory of it is refused."""
    fills: ClassVar[bool] = False
    """Whether `fill` makes the frames between two given ones. A property where that depends on the model."""

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this many pixels."""

    @property
    def lead_frames(self) -> int:
        """Over how many frames before it a later chunk fades in, with its own version of them (`ChunkResult.lead`)."""
        return 0

    @property
    def layout(self) -> LatentLayout | None:
        """How latents stand for frames, for families whose tail is latents; None: the tail is frames."""
        return None

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides what this sampler makes and is the same for all chunks, as plain values."""

    def chunk_identity(self, chunk: Chunk) -> Mapping[str, Any]:
        """What else decides this chunk: by default the cues that it obeys, where a plan sets them."""
        return chunk.cues(*sorted(self.follows))

    @abstractmethod
    def steps(self, chunk: Chunk) -> int:
        """Sampling steps of a chunk."""

    def with_progress(self, progress: Progress) -> Self:
        """The same sampler, moving this bar."""
        return self

    def fit(self, chunk_frames: int, overlap_frames: int) -> tuple[int, int]:
        """The nearest lengths of chunk and overlap that the model can make."""
        return chunk_frames, overlap_frames

    def accept(self, plan: VideoPlan) -> VideoPlan:
        """The plan in lengths that the model can make. Called once, before anything is loaded.

        Raises:
            SettingsError: the model cannot follow the plan; says what and the way out.
        """
        chunk_frames, overlap_frames = self.fit(plan.chunk_frames, plan.overlap_frames)
        plan = replace(plan, chunk_frames=chunk_frames, overlap_frames=overlap_frames)
        beginning = plan.beginning
        if beginning.image is not None and "image" not in self.starts_from:
            raise SettingsError(
                "this model makes the first chunk from the prompt, not from start_image; make frames of that image "
                "with another model and connect them as start_frames"
            )
        if beginning.image is None and beginning.frames is None and "prompt" not in self.starts_from:
            raise SettingsError("nothing to start from: connect start_image or start_frames")
        if beginning.image is not None and beginning.frames is not None:
            raise SettingsError("start_image has no effect when start_frames is connected; disconnect one of them")
        if beginning.anchor is not None and not self.remembers_anchor:
            raise SettingsError(
                f"anchor has no effect: {self.family} does not remember one this way; disconnect it, or use "
                "Color Anchor to keep the colors"
            )
        if beginning.anchor is not None and len(beginning.anchor) > 1 and not self.averages_anchors:
            raise SettingsError(
                f"{self.family} takes one anchor image, got {len(beginning.anchor)}; choose one of them"
            )
        for side, value in (("width", plan.width), ("height", plan.height)):
            if value < self.size_multiple or value % self.size_multiple:
                nearest = max(self.size_multiple, round(value / self.size_multiple) * self.size_multiple)
                raise SettingsError(
                    f"{side} must be a multiple of {self.size_multiple} pixels, got {value}; try {nearest}"
                )
        refuse_cues(self, plan.script.used)
        for chunk in {chunk.prompt: chunk for chunk in reversed(plan.chunks)}.values():
            self.chunk_identity(chunk)  # a prompt that cannot be encoded is refused here, not after hours
        return plan

    def fit_gap(self, num_frames: int) -> int:
        """The shortest model call of at least `num_frames`, both ends included, that `fill` can make."""
        return num_frames

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        """The frames `[chunk.num_frames, 3, H, W]` of a gap that begins with `first` and ends with `last`.

        `first`, `last`: `[1, 3, H, W]`. `chunk.num_frames` is one that `fit_gap` gave. The frames at the ends are the
        model's versions of those given; who joins gaps shows the given ones.

        Raises:
            SettingsError: the family cannot (`fills`).
        """
        raise SettingsError(
            f"{self.family} cannot fill a gap between two frames; connect a chunk sampler that can, or an "
            "interpolation model"
        )

    def embed_anchor(self, frame: Tensor) -> Any:
        """Whatever of the anchor `[n, 3, H, W]` does not change from chunk to chunk (a CLIP embedding, say)."""
        return None

    @abstractmethod
    def first_chunk(self, chunk: Chunk, size: Size, image: Tensor | None) -> ChunkResult:
        """Chunk 0 of `size`, from an image `[1, 3, H, W]` or, where `starts_from` says so, from the prompt alone."""

    @abstractmethod
    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        """Latents of all `chunk.num_frames` frames, the first `chunk.overlap_frames` of them those of `tail`."""

    @abstractmethod
    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        """The frames that a later chunk adds, from the latents of its model call."""

    def next_chunk(self, chunk: Chunk, state: VideoState) -> ChunkResult:
        """A chunk that continues `state`."""
        latents = self.sample_chunk(chunk, state.tail, state.anchor)
        return ChunkResult(self.decode(latents, chunk, state.tail), latents)

    def hand_off(self, plan: VideoPlan, tail: Tensor | None, result: ChunkResult) -> Tensor:
        """The tail after `result`, from the tail before it (None for chunk 0)."""
        frames = result.frames if tail is None else torch.cat([tail, result.frames])
        return frames[-plan.overlap_frames :].clone()

    def carry(self, first: ChunkResult) -> Mapping[str, Tensor]:
        """What later chunks need to know of chunk 0, also where it was given; small tensors by name."""
        return {}

    def with_perturbed_tail(self, level: float) -> ChunkSampler:
        """The same with noise of that size (0: none) on the tail that the model sees, in place of what there was."""
        return PerturbedTail(self, level) if level else self

    def networks(self) -> tuple[Any, ...]:
        """Handles of the networks that it runs, for estimates of memory."""
        return ()

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory | None:
        """What a sampling step of this chunk takes; None where nobody can tell."""
        return None

    def step_work(self, chunk: Chunk, size: Size) -> StepWork | None:
        """What a sampling step of this chunk computes, if its sampler calls the network once; None: nobody can tell."""
        return None


def refuse_cues(sampler: ChunkSampler, cues: Collection[str]) -> None:
    """Raise `SettingsError` for the first of these cues of a plan that the sampler does not obey."""
    for cue in sorted(set(cues) - sampler.follows):
        words = "motion setting" if cue == "motion" else cue.replace("_", " ")
        raise SettingsError(
            f"{sampler.family} cannot follow the plan's {words}; leave it empty in Chunk Plan, or use a chunk sampler "
            "that can"
        )


@dataclass(frozen=True)
class WrappedSampler(ChunkSampler):
    """A chunk sampler around another one: it does what `inner` does, unless it says otherwise."""

    inner: ChunkSampler

    # What a family states once for its class, a wrapper can only ask for; that is read the same way.

    @property
    def family(self) -> str:  # type: ignore[override]
        return self.inner.family

    @property
    def starts_from(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.starts_from

    @property
    def follows(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.follows

    @property
    def averages_anchors(self) -> bool:  # type: ignore[override]
        return self.inner.averages_anchors

    @property
    def remembers_anchor(self) -> bool:  # type: ignore[override]
        return self.inner.remembers_anchor

    @property
    def fills(self) -> bool:  # type: ignore[override]
        return self.inner.fills

    @property
    def size_multiple(self) -> int:
        return self.inner.size_multiple

    @property
    def lead_frames(self) -> int:
        return self.inner.lead_frames

    @property
    def layout(self) -> LatentLayout | None:
        return self.inner.layout

    def identity(self) -> Mapping[str, Any]:
        return self.inner.identity()

    def chunk_identity(self, chunk: Chunk) -> Mapping[str, Any]:
        return self.inner.chunk_identity(chunk)

    def steps(self, chunk: Chunk) -> int:
        return self.inner.steps(chunk)

    def with_progress(self, progress: Progress) -> Self:
        return replace(self, inner=self.inner.with_progress(progress))

    def fit(self, chunk_frames: int, overlap_frames: int) -> tuple[int, int]:
        return self.inner.fit(chunk_frames, overlap_frames)

    def accept(self, plan: VideoPlan) -> VideoPlan:
        return self.inner.accept(plan)

    def fit_gap(self, num_frames: int) -> int:
        return self.inner.fit_gap(num_frames)

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        return self.inner.fill(first, last, chunk)

    def embed_anchor(self, frame: Tensor) -> Any:
        return self.inner.embed_anchor(frame)

    def first_chunk(self, chunk: Chunk, size: Size, image: Tensor | None) -> ChunkResult:
        return self.inner.first_chunk(chunk, size, image)

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        return self.inner.sample_chunk(chunk, tail, anchor)

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        return self.inner.decode(latents, chunk, tail)

    def next_chunk(self, chunk: Chunk, state: VideoState) -> ChunkResult:
        return self.inner.next_chunk(chunk, state)

    def hand_off(self, plan: VideoPlan, tail: Tensor | None, result: ChunkResult) -> Tensor:
        return self.inner.hand_off(plan, tail, result)

    def carry(self, first: ChunkResult) -> Mapping[str, Tensor]:
        return self.inner.carry(first)

    def with_perturbed_tail(self, level: float) -> ChunkSampler:
        return replace(self, inner=self.inner.with_perturbed_tail(level))

    def networks(self) -> tuple[Any, ...]:
        return self.inner.networks()

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory | None:
        return self.inner.step_memory(chunk, size)

    def step_work(self, chunk: Chunk, size: Size) -> StepWork | None:
        return self.inner.step_work(chunk, size)


@dataclass(frozen=True)
class PerturbedTail(WrappedSampler):
    """Shows the family the last frames with noise on them; the video keeps the clean ones.

    Conditional perturbation against drift (LVDM, arXiv 2211.13221; reference: lvdm, section 6.3), for frames.
    `level`: standard deviation of the noise for frames in 0..1. Drawn from the chunk's seed, once per chunk.
    """

    level: float = 0.0

    def identity(self) -> Mapping[str, Any]:
        return {**self.inner.identity(), "perturbed_tail": {"level": self.level}}

    def with_perturbed_tail(self, level: float) -> ChunkSampler:
        return self.inner.with_perturbed_tail(level)

    def next_chunk(self, chunk: Chunk, state: VideoState) -> ChunkResult:
        # A generator of its own: the family's noise stays what it is without the perturbation.
        generator = torch.Generator("cpu").manual_seed(chunk.generator().initial_seed() ^ 0x7E57)
        noise = torch.randn(state.tail.shape, generator=generator).to(state.tail)
        tail = (state.tail + self.level * noise).clamp(0, 1)
        return self.inner.next_chunk(chunk, replace(state, tail=tail))

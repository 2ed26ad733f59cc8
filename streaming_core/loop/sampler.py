"""What a model family brings to the chunk loop: the interface that all chunk samplers derive from.

Write a family by deriving from `ChunkSampler` and filling in what is abstract; everything else has a default that is
right for a family that continues the last frames of a video. What lies around any family (color anchoring, a perturbed
tail) derives from `WrappedSampler`, which hands every question on to the sampler inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..errors import SettingsError
from .chunk import Chunk
from .latent_layout import LatentLayout
from .plan import VideoPlan
from .refusals import cannot_fill, refuse_cues, refuse_size
from .remedies import Perturbation, PreviousGuidance, perturbed_frames
from .script import CUES
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
        refuse_size(self.size_multiple, *plan.size)
        refuse_cues(self.family, self.follows, plan.script.used)
        for chunk in {chunk.prompt: chunk for chunk in reversed(plan.chunks)}.values():
            self.chunk_identity(chunk)  # a prompt that cannot be encoded is refused here, not after hours
        return plan

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        """Raise `SettingsError` where `fill` cannot make this gap. Called once per gap, before anything is loaded."""
        if not self.fills:
            raise cannot_fill(self.family)
        refuse_size(self.size_multiple, *size)
        refuse_cues(self.family, self.follows, chunk.cues(*CUES))
        self.chunk_identity(chunk)  # as in `accept`

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
        raise cannot_fill(self.family)

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

    def with_perturbed_tail(self, perturbation: Perturbation) -> ChunkSampler:
        """The same with that noise on the tail that the model sees, in place of what there was.

        Raises:
            SettingsError: the family shows its model the same tail at all steps, and the noise is for some.
        """
        if not perturbation.is_whole:
            raise SettingsError(
                f"{self.family} is shown its tail once per chunk; set start_percent to 0 and end_percent to 1 in "
                "Perturb Tail"
            )
        return PerturbedTail(self, perturbation) if perturbation.is_on else self

    def with_previous_guidance(self, guidance: PreviousGuidance) -> ChunkSampler:
        """The same, guided against what the model makes without the tail, in place of what there was.

        Raises:
            SettingsError: the family has no model call without the tail.
        """
        if guidance.is_on:
            raise SettingsError(
                f"{self.family} cannot be guided against the previous chunk; remove Previous Chunk Guidance"
            )
        return self

    def blind_calls(self, chunk: Chunk) -> int:
        """Steps of a chunk with one more model call, which does not see the tail."""
        return 0

    def networks(self) -> tuple[Any, ...]:
        """Handles of the networks that it runs, for estimates of memory."""
        return ()

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory | None:
        """What a sampling step of this chunk takes; None where nobody can tell."""
        return None

    def step_work(self, chunk: Chunk, size: Size) -> StepWork | None:
        """What a sampling step of this chunk computes, if its sampler calls the network once; None: nobody can tell."""
        return None


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

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        self.inner.accept_gap(chunk, size)

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

    def with_perturbed_tail(self, perturbation: Perturbation) -> ChunkSampler:
        return replace(self, inner=self.inner.with_perturbed_tail(perturbation))

    def with_previous_guidance(self, guidance: PreviousGuidance) -> ChunkSampler:
        return replace(self, inner=self.inner.with_previous_guidance(guidance))

    def blind_calls(self, chunk: Chunk) -> int:
        return self.inner.blind_calls(chunk)

    def networks(self) -> tuple[Any, ...]:
        return self.inner.networks()

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory | None:
        return self.inner.step_memory(chunk, size)

    def step_work(self, chunk: Chunk, size: Size) -> StepWork | None:
        return self.inner.step_work(chunk, size)


@dataclass(frozen=True)
class PerturbedTail(WrappedSampler):
    """Shows the family the last frames with noise on them, at all steps; the video keeps the clean ones."""

    perturbation: Perturbation = Perturbation()

    def identity(self) -> Mapping[str, Any]:
        return {**self.inner.identity(), "perturbed_tail": self.perturbation.identity("level")}

    def with_perturbed_tail(self, perturbation: Perturbation) -> ChunkSampler:
        return self.inner.with_perturbed_tail(perturbation)

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        raise SettingsError(
            "Perturb Tail has no effect between two keyframes, where nothing has a tail; connect the chunk sampler "
            "without it"
        )

    def next_chunk(self, chunk: Chunk, state: VideoState) -> ChunkResult:
        tail = perturbed_frames(state.tail, self.perturbation.at(chunk.index), chunk)
        return self.inner.next_chunk(chunk, replace(state, tail=tail))

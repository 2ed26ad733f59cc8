"""The plan of a video: all that is known of it before its first chunk is made (docs/design.md, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from ..errors import SettingsError
from ..frames.fitting import Fit
from .chunk import Chunk
from .script import Script

_LENGTHS = ("num_frames", "chunk_frames", "overlap_frames", "given_frames", "seed")


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a video starts from. All frames are `[F, 3, H, W]` in [0, 1], at the size of the video.

    Attributes:
        image: one frame that the model makes the first chunk from.
        frames: frames to continue instead; they are the first chunk.
        anchor: frames that the video keeps looking like, instead of frame `anchor_frame` of the first chunk.
        anchor_frame: index from 0.
    """

    image: Tensor | None = None
    frames: Tensor | None = None
    anchor: Tensor | None = None
    anchor_frame: int = 0


@dataclass(frozen=True)
class VideoPlan:
    """How a video of `num_frames` is made: a first chunk, then chunks that each continue its tail.

    Attributes:
        num_frames: length of the video.
        chunk_frames: frames per model call, `overlap_frames` included.
        overlap_frames: frames that each chunk re-creates and continues.
        seed: 0 to 2**64 - 1; chunk k draws its noise from the seed and k.
        fps: rate of the video.
        script: what differs from chunk to chunk.
        height, width: pixels; 0 until they are known (a CHUNK_PLAN does not say them).
        beginning: what the video starts from.
        given_frames: frames of chunk 0 where it is not made but given; known from `beginning`.
        own_seeds: pairs of a chunk and its seed, whatever the rest says.
        fit: how images of another aspect ratio are fitted; those of `beginning` are already.

    Raises:
        SettingsError: lengths that cannot work.
    """

    num_frames: int
    chunk_frames: int
    overlap_frames: int
    seed: int = 0
    fps: Fraction = Fraction(12)
    script: Script = Script()
    height: int = 0
    width: int = 0
    beginning: Beginning = field(default_factory=Beginning, compare=False)
    given_frames: int = 0
    own_seeds: tuple[tuple[int, int], ...] = ()
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        if self.beginning.frames is not None:
            object.__setattr__(self, "given_frames", len(self.beginning.frames))
            if not self.given_frames:
                raise SettingsError("start_frames is empty; it needs at least 1 frame")
        if self.num_frames < 1:
            raise SettingsError(f"a video needs at least 1 frame, got num_frames = {self.num_frames}")
        if not 1 <= self.overlap_frames < self.chunk_frames:
            raise SettingsError(
                f"overlap_frames must be 1 to {self.chunk_frames - 1} (chunk_frames - 1), got {self.overlap_frames}"
            )
        if self.num_frames > self.first_frames and self.first_frames < self.overlap_frames:
            raise SettingsError(
                f"start_frames has {self.first_frames} frames but {self.overlap_frames} are needed to continue it; "
                "use more frames or a smaller overlap_frames"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def first_frames(self) -> int:
        """Frames of chunk 0: those that were given, or as many as the model makes."""
        return self.given_frames or self.chunk_frames

    @property
    def num_chunks(self) -> int:
        """Chunks in all, the first one included: `1 + ceil((T - F) / (N - K))`."""
        missing = max(0, self.num_frames - self.first_frames)
        return 1 + -(-missing // (self.chunk_frames - self.overlap_frames))

    def chunk(self, index: int) -> Chunk:
        """Chunk `index`, from 0 to `num_chunks - 1`. Raises `SettingsError` for another number."""
        if not 0 <= index < self.num_chunks:
            raise SettingsError(f"chunk {index} is not in this plan of {self.num_chunks} chunks (0 is the first)")
        step = self.chunk_frames - self.overlap_frames
        start = self.first_frames + (index - 1) * step if index else 0
        whole = start + (step if index else self.first_frames)  # untrimmed: a longer video has the same chunks
        return Chunk(
            index=index,
            start=start,
            stop=min(whole, self.num_frames),
            num_frames=self.chunk_frames if index else self.first_frames,
            overlap_frames=self.overlap_frames if index else 0,
            seed=dict(self.own_seeds).get(index, self.script.seed(self.seed, index, whole)),
            prompt=self.script.value("prompts", None, index, whole),
            cam_strength=self.script.value("cam_strength", 1.0, index, whole),
            anchor_strength=self.script.value("anchor_strength", 1.0, index, whole),
            motion=self.script.value("motion", None, index, whole),
            ends_video=index == self.num_chunks - 1,
            fit=self.fit,
        )

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All chunks in order."""
        return tuple(self.chunk(index) for index in range(self.num_chunks))

    def chunk_with(self, frame: int) -> Chunk:
        """The chunk that adds a frame of the video. Raises `SettingsError` where the video has no such frame."""
        if not 0 <= frame < self.num_frames:
            raise SettingsError(f"frame {frame} is not in this video of {self.num_frames} frames (0 is the first)")
        later = frame - self.first_frames
        return self.chunk(0 if later < 0 else 1 + later // (self.chunk_frames - self.overlap_frames))

    def with_seed(self, index: int, seed: int) -> VideoPlan:
        """The plan with another seed for one chunk."""
        return replace(self, own_seeds=(*self.own_seeds, (index, seed)))

    def to_dict(self) -> dict[str, Any]:
        """Lengths, seed, rate and script as plain values, for manifests."""
        sizes = {name: getattr(self, name) for name in _LENGTHS}
        return {**sizes, "fps": str(self.fps), "script": self.script.to_dict(), "fit": self.fit}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **known: Any) -> VideoPlan:
        """The plan that `to_dict` wrote, with what else is `known` (size, beginning).

        Raises KeyError, TypeError or ValueError for anything else.
        """
        return cls(**{**data, "fps": Fraction(data["fps"]), "script": Script.from_dict(data["script"])}, **known)

    def table(self) -> str:
        """What each chunk shows and is made with, one line each; chunks alike share a line.

        Most families follow no motion, so that it has a column only where the plan sets it.
        """
        has_motion = "motion" in self.script.used
        length = f"{self.num_frames} frames, {float(self.num_frames / self.fps):.2f} s at {float(self.fps):g} fps"
        lines = [
            f"{length}: {self.num_chunks} chunks of {self.chunk_frames} frames, overlap {self.overlap_frames}",
            f"chunk | frames | time | seed | CAM | anchor | {'motion | ' * has_motion}prompt",
        ]
        group: list[Chunk] = []
        for chunk in self.chunks:
            if group and _alike(group[-1]) != _alike(chunk):
                lines.append(_line(group, self.fps, has_motion))
                group = []
            group.append(chunk)
        return "\n".join([*lines, _line(group, self.fps, has_motion)])


def _alike(chunk: Chunk) -> tuple[Any, ...]:
    return chunk.seed, chunk.cam_strength, chunk.anchor_strength, chunk.motion, chunk.prompt


def _line(chunks: list[Chunk], fps: Fraction, has_motion: bool) -> str:
    first, last = chunks[0], chunks[-1]
    numbers = f"{first.index}" if first is last else f"{first.index}-{last.index}"
    times = f"{_clock(first.start / fps)}-{_clock(last.stop / fps)}"
    strengths = f"{first.cam_strength:g} | {first.anchor_strength:g}"
    if has_motion:
        strengths += " | -" if first.motion is None else f" | {first.motion:g}"
    prompt = "-" if first.prompt is None else first.prompt
    return f"{numbers} | {first.start}-{last.stop - 1} | {times} | {first.seed} | {strengths} | {prompt}"


def _clock(seconds: Fraction) -> str:
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"

"""Video plans: all that can be said of a video's chunks before its first clip is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .chunk import ChunkPlan
from .script import Script


@dataclass(frozen=True)
class VideoPlan:
    """A CHUNK_PLAN: length, chunks, seed and script of a video; `begin` makes chunks of it.

    Raises `SettingsError` for lengths that cannot work with a first clip of `chunk_frames`.
    """

    num_frames: int
    chunk_frames: int
    overlap_frames: int
    seed: int
    fps: Fraction
    script: Script = field(default_factory=Script)

    def __post_init__(self):
        self.begin(self.chunk_frames)

    def begin(self, first_frames: int) -> ChunkPlan:
        """The chunks, once it is known that the first clip has `first_frames` frames."""
        sizes = self.num_frames, self.chunk_frames, self.overlap_frames
        return ChunkPlan(*sizes, first_frames, self.seed, self.script)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for manifests."""
        sizes = {name: getattr(self, name) for name in ("num_frames", "chunk_frames", "overlap_frames", "seed")}
        return {**sizes, "fps": str(self.fps), "script": self.script.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VideoPlan:
        """Raises KeyError, TypeError or ValueError for anything that `to_dict` did not make."""
        return cls(**{**data, "fps": Fraction(data["fps"]), "script": Script.from_dict(data["script"])})

    def table(self, first_frames: int | None = None) -> str:
        """What each chunk shows and is made with, one line each; chunks alike are drawn together.

        `first_frames`: length of the first clip; default a whole chunk, as when the model makes it.
        """
        plan = self.begin(first_frames or self.chunk_frames)
        length = f"{self.num_frames} frames, {float(self.num_frames / self.fps):.2f} s at {float(self.fps):g} fps"
        lines = [
            f"{length}: {plan.num_chunks} chunks of {self.chunk_frames} frames, overlap {self.overlap_frames}",
            "chunk | frames | time | seed | CAM | anchor | prompt",
        ]
        group: list = []
        for chunk in plan.chunks:
            if group and _alike(group[-1]) != _alike(chunk):
                lines.append(_line(group, self.fps))
                group = []
            group.append(chunk)
        return "\n".join([*lines, _line(group, self.fps)])


def _alike(chunk) -> tuple:
    return chunk.seed, chunk.cam_strength, chunk.anchor_strength, chunk.prompt


def _line(chunks: list, fps: Fraction) -> str:
    first, last = chunks[0], chunks[-1]
    numbers = f"{first.index}" if first is last else f"{first.index}-{last.index}"
    times = f"{_clock(first.start / fps)}-{_clock(last.stop / fps)}"
    strengths = f"{first.cam_strength:g} | {first.anchor_strength:g}"
    prompt = "-" if first.prompt is None else first.prompt
    return f"{numbers} | {first.start}-{last.stop - 1} | {times} | {first.seed} | {strengths} | {prompt}"


def _clock(seconds: Fraction) -> str:
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"

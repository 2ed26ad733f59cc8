"""A video in levels: keyframes far apart come from the chunk loop, then the gaps between neighbors are filled.

    keyframes  K . . . . . . . K . . . . . . . K      1 / stride ** levels of the frame rate
    level 1    K . . . G . . . K . . . G . . . K
    level 2    K . G . G . G . K . G . G . G . K
    level 3    every frame

Where the length does not end on a keyframe, the last keyframe lies beyond the end: the last gap is made whole, like
the last chunk of the loop, and the video is trimmed when it is read. A longer video then has the same gaps and more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from ..errors import SettingsError
from ..frames.stream import HIGHEST_RATE, LOWEST_RATE
from .chunk import Chunk
from .plan import VideoPlan

GAP_CUES = ("prompt", "motion")
"""What a gap takes from the plan of its keyframes; strengths belong to the chunk loop."""


@dataclass(frozen=True)
class Hierarchy:
    """How many frames each level of a video has. Level 0 are the keyframes, level `levels` is the video.

    Attributes:
        num_frames: length of the video.
        stride: steps that one level makes of the distance between two neighbors.
        levels: how often that is done.

    Raises:
        SettingsError: no frame, a stride below 2, no level.
    """

    num_frames: int
    stride: int
    levels: int = 1

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise SettingsError(f"a video needs at least 1 frame, got num_frames = {self.num_frames}")
        if self.stride < 2:
            raise SettingsError(f"stride must be 2 or more, got {self.stride}; at 1 there is nothing between keyframes")
        if self.levels < 1:
            raise SettingsError(f"levels must be 1 or more, got {self.levels}")

    @classmethod
    def of_keyframes(cls, num_keyframes: int, stride: int, levels: int = 1) -> Hierarchy:
        """The longest video between that many keyframes: it ends on the last of them."""
        return cls((num_keyframes - 1) * stride**levels + 1, stride, levels)

    @property
    def step(self) -> int:
        """Frames of the video from one keyframe to the next."""
        return self.spacing(0)

    def spacing(self, level: int) -> int:
        """Frames of the video from one frame of a level to the next."""
        spacing: int = self.stride ** (self.levels - level)
        return spacing

    @property
    def num_keyframes(self) -> int:
        """Keyframes that the video needs; the last one may lie beyond its end."""
        return self.frames(0)

    def frames(self, level: int) -> int:
        """Frames of a level, 0 to `levels`, up to the first one at or after the end of the video."""
        return 1 + -(-(self.num_frames - 1) // self.spacing(level))

    def gaps(self, level: int) -> int:
        """Gaps that level 1 to `levels` fills: those between the frames of the level before."""
        return self.frames(level - 1) - 1

    def rate(self, fps: Fraction, level: int = 0) -> Fraction:
        """The frame rate of a level in a video of `fps`. Raises `SettingsError` for one below 1/1000 per second."""
        rate = fps / self.spacing(level)
        if rate < LOWEST_RATE:
            raise SettingsError(
                f"keyframes would be {self.spacing(level)} frames apart, {float(1 / rate):.0f} s; use a smaller stride "
                "or fewer levels"
            )
        return rate


def filled_rate(fps: Fraction, stride: int, level: int = 1) -> Fraction:
    """The frame rate of a level between keyframes at `fps`. Raises `SettingsError` for one above 1000 per second."""
    rate: Fraction = fps * stride**level
    if rate > HIGHEST_RATE:
        raise SettingsError(
            f"keyframes at {float(fps):g} fps become a video of {float(rate):g} fps, more than {HIGHEST_RATE}; use a "
            "smaller stride or fewer levels"
        )
    return rate


def level_seed(seed: int, level: int) -> int:
    """The seed of a level: that of the video for the first, others for further ones, so that no noise comes twice."""
    if level == 1:
        return seed
    digest = hashlib.blake2b(f"level:{seed}:{level}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class GapPlan:
    """The gaps of one level, each made from the two frames at its ends alone.

    Attributes:
        num_frames: length of the level; the last gap is made whole and trimmed when it is read.
        stride: a gap adds `stride - 1` frames, and the frame at its end stands after them.
        model_frames: frames of one model call, both ends included; `(model_frames - 1)` is a multiple of `stride`.
        seed: 0 to 2**64 - 1.
        fps: rate of the level.
        level: 1 for the gaps between keyframes, 2 for those between the frames of level 1.
        keyframes: the plan that the keyframes were made by; gaps take its prompts and motion.
        own_seeds: pairs of a gap and its seed.
    """

    num_frames: int
    stride: int
    model_frames: int
    seed: int = 0
    fps: Fraction = Fraction(12)
    level: int = 1
    keyframes: VideoPlan | None = field(default=None)
    own_seeds: tuple[tuple[int, int], ...] = ()

    @property
    def num_gaps(self) -> int:
        return -(-(self.num_frames - 1) // self.stride)

    def chunk(self, index: int) -> Chunk:
        """Gap `index` as a model call; `start` and `stop` are the frames that it adds, gap 0 with those at both ends.

        It has the prompt and motion of the chunk that the keyframe at or after its end belongs to. Motion counts from
        frame to frame, and those of a gap are closer in time than keyframes: it is weaker by as much (a higher number).

        Raises:
            SettingsError: there is no such gap.
        """
        if not 0 <= index < self.num_gaps:
            raise SettingsError(f"gap {index} is not in this video of {self.num_gaps} gaps (0 is the first)")
        prompt = motion = None
        if self.keyframes is not None:
            keyframe = -(-(index + 1) // self.stride ** (self.level - 1))
            shown = self.keyframes.chunk_with(min(keyframe, self.keyframes.num_frames - 1))
            prompt, motion = shown.prompt, shown.motion
        return Chunk(
            index=index,
            start=index * self.stride + (1 if index else 0),
            stop=min((index + 1) * self.stride + 1, self.num_frames),
            num_frames=self.model_frames,
            overlap_frames=1,
            seed=dict(self.own_seeds).get(index, self.seed),
            prompt=prompt,
            motion=None if motion is None else motion * self.stride**self.level,
        )

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All gaps in order."""
        return tuple(self.chunk(index) for index in range(self.num_gaps))

    def with_seed(self, index: int, seed: int) -> GapPlan:
        """The plan with another seed for one gap."""
        return replace(self, own_seeds=(*self.own_seeds, (index, seed)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for manifests."""
        names = ("num_frames", "stride", "model_frames", "seed", "level")
        plan = None if self.keyframes is None else self.keyframes.to_dict()
        return {**{name: getattr(self, name) for name in names}, "fps": str(self.fps), "keyframes": plan}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GapPlan:
        """The plan that `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        plan = data["keyframes"]
        keyframes = None if plan is None else VideoPlan.from_dict(plan)
        return cls(**{**data, "fps": Fraction(data["fps"]), "keyframes": keyframes})

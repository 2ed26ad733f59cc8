"""One chunk of a video: which frames one model call makes, and from which random numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..frames.fitting import Fit


@dataclass(frozen=True)
class Chunk:
    """One model call. Chunk 0 is the first one; every later chunk re-creates `overlap_frames` and adds the rest.

    Attributes:
        start, stop: the frames of the video that it contributes, trimmed to the video's length.
        num_frames: frames of the model call.
        overlap_frames: how many of them, at its beginning, exist already.
        prompt: None for the family's own.
        cam_strength, anchor_strength: factors on short-term and long-term memory.
        motion: how much moves, above 0; lower is stronger. None for the family's own setting.
        ends_video: whether it is the last chunk of its plan; a longer video makes another one of it only if the family
            says so in `chunk_identity`.
        fit: how images that the sampler itself brings are fitted to the size of the video.
    """

    index: int
    start: int
    stop: int
    num_frames: int
    overlap_frames: int
    seed: int
    prompt: str | None = None
    cam_strength: float = 1.0
    anchor_strength: float = 1.0
    motion: float | None = None
    ends_video: bool = False
    fit: Fit = "crop"

    def cues(self, *names: str) -> dict[str, Any]:
        """Those of these fields that a script set to something else than their default."""
        defaults = {each.name: each.default for each in fields(self)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    @property
    def new_frames(self) -> int:
        """Frames of the video that it contributes."""
        return self.stop - self.start

    def generator(self) -> torch.Generator:
        """A CPU generator that is the same for this chunk however it was reached."""
        digest = hashlib.blake2b(f"{self.seed}:{self.index}".encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)

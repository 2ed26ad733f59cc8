"""What the file of a chunk holds: frames in eight bits, tail and further tensors bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..errors import FrameError
from ..frames.stream import size_text, to_rgb

_RESERVED = frozenset({"frames", "tail", "lead"})


@dataclass(frozen=True)
class ChunkContent:
    """The tensors of a finished chunk, on any device.

    Attributes:
        frames: what it adds to the video, `[F, H, W, C]`, 0..1 or uint8; stored as `[F, H, W, 3]` uint8, rounded.
        tail: what the next chunk continues from, frames or latents, bit for bit (float32 frames for an exact hand-off).
        extra: further tensors by name, bit for bit: anchor, carry, later perhaps latents or audio. Readers take what
            they know. Names must not be "frames", "tail" or "lead".
        seam_frames: see `ChunkRecord`.
        lead: what it made of the last frames before it, in the form of `frames`: they pass over into these when the
            video is read.
    """

    frames: torch.Tensor
    tail: torch.Tensor | None = None
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seam_frames: int = 0
    lead: torch.Tensor | None = None

    @property
    def lead_frames(self) -> int:
        """See `ChunkRecord`."""
        return 0 if self.lead is None else len(self.lead)

    def tensors(self, height: int, width: int) -> dict[str, torch.Tensor]:
        """The tensors by name, as they are stored; frames must be `height` x `width` pixels.

        Raises:
            FrameError: no frames, another size, values that are not numbers, or a reserved name among `extra`.
        """
        taken = sorted(_RESERVED & set(self.extra))
        if taken:
            raise FrameError(f"extra tensors cannot be called {', '.join(taken)}")
        found = {**self.extra, "frames": _stored_frames(self.frames, height, width)}
        if self.lead is not None:
            found["lead"] = _stored_frames(self.lead, height, width)
        return found if self.tail is None else {**found, "tail": self.tail}


def _stored_frames(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    rgb = to_rgb(frames)
    size = rgb.shape[1], rgb.shape[2]
    if len(rgb) == 0:
        raise FrameError("a chunk adds at least one frame to the video, got none")
    if size != (height, width):
        raise FrameError(f"frames are {size_text(*size)}, the run is {size_text(height, width)}")
    if torch.isnan(rgb.sum()):
        raise FrameError("frames hold values that are not numbers; the model overflowed, run it in float32 or bfloat16")
    return (rgb * 255).round().to(torch.uint8)

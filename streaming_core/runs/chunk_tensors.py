"""What a chunk stores: frames in a small type, latents and tail bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import FrameError
from ..frames.stream import to_rgb

_STORED_TYPES = {"uint8": torch.uint8, "float16": torch.float16}
_RESERVED = ("frames", "latents", "tail")


def storable_frames(frames: torch.Tensor, store_as: str) -> torch.Tensor:
    """Frames `[F, H, W, C]` in 0..1 as `[F, H, W, 3]` uint8 (rounded) or float16.

    Raises:
        FrameError: another type to store as, no images, or values that are not numbers.
    """
    if store_as not in _STORED_TYPES:
        raise FrameError(f"frames are stored as {' or '.join(_STORED_TYPES)}, not {store_as}")
    rgb = to_rgb(frames)
    if torch.isnan(rgb.sum()):
        raise FrameError("frames hold values that are not numbers; the model overflowed, run it in float32 or bfloat16")
    return (rgb * 255).round().to(torch.uint8) if store_as == "uint8" else rgb.to(torch.float16)


def chunk_tensors(
    frames: torch.Tensor | None,
    latents: torch.Tensor | None,
    tail: torch.Tensor | None,
    extra: Mapping[str, torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """The tensors of a chunk by name.

    Raises:
        FrameError: neither frames nor latents, or an extra tensor with one of their names.
    """
    if frames is None and latents is None:
        raise FrameError("a chunk needs frames or latents, got neither")
    taken = sorted(set(_RESERVED) & set(extra or {}))
    if taken:
        raise FrameError(f"extra tensors cannot be called {', '.join(taken)}")
    named = zip(_RESERVED, (frames, latents, tail), strict=True)
    return {**(extra or {}), **{name: tensor for name, tensor in named if tensor is not None}}


def video_frames(tensors: Mapping[str, torch.Tensor], num_frames: int | None, skip_frames: int) -> int:
    """How many frames a chunk adds to the video: as asked for, or all stored frames after the first `skip_frames`.

    Raises:
        FrameError: none, more than there are, or not given for a chunk that stores latents only.
    """
    stored = tensors["frames"].shape[0] if "frames" in tensors else None
    if num_frames is None:
        if stored is None:
            raise FrameError("a chunk of latents needs the number of frames that it adds to the video")
        num_frames = stored - skip_frames
    if num_frames < 1 or skip_frames < 0 or (stored is not None and skip_frames + num_frames > stored):
        raise FrameError(
            f"a chunk adds at least one frame, and none it does not hold: {num_frames} after the first {skip_frames} "
            f"of {'its latents' if stored is None else f'{stored} frames'} were asked for"
        )
    return num_frames

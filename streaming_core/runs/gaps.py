"""How a gap between two keyframes is stored: like a chunk that continues nothing and knows both of its ends.

Chunk file g of such a run adds the frames between keyframes g and g + 1 and keyframe g + 1; the first one also adds
keyframe 0. So every keyframe stands in the video once. Both ends lie in the file once more, bit for bit: a gap can be
made again from its file alone, and the video shows keyframes exactly as they were given, however many bits they have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RunDamagedError
from ..frames.stream import to_rgb
from .chunk_file import ChunkFile
from .content import ChunkContent
from .record import ChunkRecord

KEYFRAMES = "keyframes"
"""Name of the tensor that holds both ends, `[2, H, W, 3]`: uint8 where bytes hold them exactly, else float32."""


def gap_content(index: int, ends: Tensor, between: Tensor) -> ChunkContent:
    """What is stored of gap `index`: `ends` `[2, H, W, 3]` and the frames `between` them, both in 0..1."""
    frames = torch.cat([ends[:1], between, ends[1:]] if index == 0 else [between, ends[1:]])
    return ChunkContent(frames, extra={KEYFRAMES: _smallest(ends)})


def stored_ends(file: ChunkFile) -> Tensor:
    """Both ends of a stored gap, `[2, H, W, 3]` float32 in 0..1. Raises `RunDamagedError` where the file has none."""
    ends = file.read(KEYFRAMES)
    if ends is None:
        raise RunDamagedError(f"{file.path} holds no keyframes; run Fill Between with another run_name")
    return to_rgb(ends)


def exact_frames(record: ChunkRecord) -> tuple[tuple[int, int], ...]:
    """Pairs of a frame that a take adds and its row among the stored ends; none for chunks that are not gaps."""
    if KEYFRAMES not in record.contents:
        return ()
    last = (record.num_frames - 1, 1)
    return (last,) if record.index else ((0, 0), last)


def _smallest(ends: Tensor) -> Tensor:
    stored = (ends * 255).round().to(torch.uint8)
    return stored if torch.equal(to_rgb(stored), ends) else ends.to(torch.float32)

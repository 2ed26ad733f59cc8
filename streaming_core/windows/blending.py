"""Randomized blending: windows of one video joined by copying, never by averaging.

Every window writes from its handover on over what earlier windows wrote. Each frame is then the unchanged result of one
window, the last one that reaches it (Henschel et al., "StreamingT2V", arXiv:2403.14773, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def write_window(video: Tensor, part: Tensor, frames: Sequence[int], offset: int, dim: int) -> None:
    """Write a window's result into `video`, from the window's frame `offset` on. Call it in the order of the windows.

    Args:
        video: all frames along `dim`; written in place.
        part: the window's frames along `dim`, otherwise of the shape of `video`; any device and type.
        frames: which frames of `video` the window shows.
        offset: the window's handover, see `handovers.first_owned`.
    """
    owned = torch.tensor(frames[offset:], dtype=torch.long, device=video.device)
    video.index_copy_(dim, owned, part.narrow(dim, offset, len(owned)).to(video))

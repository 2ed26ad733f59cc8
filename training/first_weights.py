"""First weights that do something from the first step on, so that a short training need not find it.

A value enters as a pair of opposite channels, which one norm group of a 64-wide network holds: its mean stays zero
there, and silu(x) - silu(-x) = x brings it back after the norm. Residual branches begin as nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PIXEL_SIZE = 0.5
"""Root mean square of a video's pixels in -1..1; the norms in front of the last convolutions divide by it."""


@torch.no_grad()
def enter_in_pairs(conv: nn.Conv2d | nn.Conv3d, values: int) -> None:
    """The first `values` inputs of an odd kernel come out as pairs x, -x in front; other channels stay."""
    for value in range(values):
        for channel, sign in ((2 * value, 1.0), (2 * value + 1, -1.0)):
            conv.weight[channel] = 0.0
            conv.weight[(channel, value, *_middle(conv))] = sign


@torch.no_grad()
def leave_from_pairs(conv: nn.Conv2d | nn.Conv3d, values: int, scale: float = 1.0) -> None:
    """The first `values` outputs of an odd kernel are `scale` times the pairs in front."""
    for value in range(values):
        conv.weight[value] = 0.0
        conv.weight[(value, 2 * value, *_middle(conv))] = scale
        conv.weight[(value, 2 * value + 1, *_middle(conv))] = -scale


def _middle(conv: nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    return tuple(side // 2 for side in conv.kernel_size)


@torch.no_grad()
def relay_pairs(conv: nn.Conv2d, values: int, taps: Tensor) -> None:
    """Pairs after a silu become pairs again, each value filtered with `taps` `[3, 3]`; other outputs stay."""
    for value in range(values):
        for channel, sign in ((2 * value, 1.0), (2 * value + 1, -1.0)):
            conv.weight[channel] = 0.0
            conv.weight[channel, 2 * value] = sign * taps
            conv.weight[channel, 2 * value + 1] = -sign * taps

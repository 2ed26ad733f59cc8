"""First weights that do something from the first step on, so that a short training need not find it.

A value enters as a pair of opposite channels, which one norm group of a 64-wide network holds: its mean stays zero
there, and silu(x) - silu(-x) = x brings it back behind the norm. Residual branches begin as nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layout import silence


@torch.no_grad()
def enter_in_pairs(conv: nn.Conv2d, values: int) -> None:
    """The first `values` inputs of a 3x3 convolution come out as pairs x, -x in front; other channels stay."""
    for value in range(values):
        for channel, sign in ((2 * value, 1.0), (2 * value + 1, -1.0)):
            conv.weight[channel] = 0.0
            conv.weight[channel, value, 1, 1] = sign


@torch.no_grad()
def leave_from_pairs(conv: nn.Conv2d, values: int, scale: float = 1.0) -> None:
    """The first `values` outputs of a 3x3 convolution are `scale` times the pairs in front."""
    for value in range(values):
        conv.weight[value] = 0.0
        conv.weight[value, 2 * value, 1, 1] = scale
        conv.weight[value, 2 * value + 1, 1, 1] = -scale


@torch.no_grad()
def relay_pairs(conv: nn.Conv2d, values: int, taps: Tensor) -> None:
    """Pairs behind a silu become pairs again, each value filtered with `taps` `[3, 3]`; other outputs stay."""
    for value in range(values):
        for channel, sign in ((2 * value, 1.0), (2 * value + 1, -1.0)):
            conv.weight[channel] = 0.0
            conv.weight[channel, 2 * value] = sign * taps
            conv.weight[channel, 2 * value + 1] = -sign * taps


@torch.no_grad()
def filter_channels(conv: nn.Conv2d, taps: Tensor) -> None:
    """Every channel is filtered with `taps` `[3, 3]` by itself."""
    nn.init.zeros_(conv.weight)
    for channel in range(conv.out_channels):
        conv.weight[channel, channel] = taps


PIXEL_SIZE = 0.5
"""Root mean square of a video's pixels in -1..1; the norms in front of the last convolutions divide by it."""


def start_as_downscaler(autoencoder: nn.Module) -> None:
    """An autoencoder whose first three latents are the image eight times smaller, and which enlarges them smoothly.

    Of the same width at all levels, in the host's names, with `quant_conv`.
    """
    silence(autoencoder, ".conv2", ".proj_out")
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    box = torch.zeros(3, 3)
    box[:2, :2] = 0.25  # strides pad at the right and at the bottom
    for level in encoder.down:
        if hasattr(level, "downsample"):
            filter_channels(level.downsample.conv, box)
    row = torch.tensor([0.25, 0.5, 0.25])
    for level in decoder.up:
        if hasattr(level, "upsample"):
            filter_channels(level.upsample.conv, torch.outer(row, row))
    for part in (encoder, decoder):
        enter_in_pairs(part.conv_in, 3)
        leave_from_pairs(part.conv_out, 3, PIXEL_SIZE)
    with torch.no_grad():
        nn.init.dirac_(autoencoder.quant_conv.weight)
        means = autoencoder.quant_conv.out_channels // 2
        encoder.conv_out.weight[means:] *= 0.05

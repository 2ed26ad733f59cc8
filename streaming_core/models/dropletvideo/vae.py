"""The causal 3-D VAE of CogVideoX, as DropletVideo uses it (reference: dropletvideo, section 6).

One latent stands for the first frame, each further one for four. Videos are encoded in groups of four frames and
decoded in groups of two latents; norms take their statistics per group, so these numbers belong to the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import FrameError, SettingsError
from ..layers import Device, Operations
from .causal import CausalConv3d, Double, Halve, LatentNorm, MakeNorm, Residual, Tails, normed
from .config import SPATIAL_SCALE, TEMPORAL_SCALE, CausalVaeConfig
from .tiles import decode_in_tiles

ENCODE_GROUP, DECODE_GROUP = 4, 2
"""Frames encoded and latents decoded at a time; the first group also takes what is left over."""
TIMED_LEVELS = 2
"""Changes of level that halve or double time too: the first of the encoder, and the first of the decoder."""
SMALLEST_TILE_PX = 2 * SPATIAL_SCALE


class Level(nn.Module):
    """Residual blocks of one size, then a change of size."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        count: int,
        make_norm: MakeNorm,
        options: dict[str, Any],
        down: nn.Module | None = None,
        up: nn.Module | None = None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            Residual(out_channels if index else channels, out_channels, make_norm, **options) for index in range(count)
        )
        self.downsamplers = None if down is None else nn.ModuleList([down])
        self.upsamplers = None if up is None else nn.ModuleList([up])

    def forward(self, x: Tensor, tails: Tails, latents: Tensor | None = None) -> Tensor:
        for block in self.resnets:
            x = block(x, tails, latents)
        for resize in self.downsamplers or self.upsamplers or ():
            x = resize(x)
        return x


class Encoder(nn.Module):
    """A group of frames to mean and log variance of its latents."""

    def __init__(self, config: CausalVaeConfig, options: dict[str, Any]):
        super().__init__()
        operations, plain = options["operations"], {key: options[key] for key in ("dtype", "device")}
        norm = partial(operations.GroupNorm, config.norm_groups, eps=config.norm_eps, **plain)
        channels, last = config.channels, len(config.channels) - 1
        self.conv_in = CausalConv3d(3, channels[0], **options)
        self.down_blocks = nn.ModuleList(
            Level(
                channels[max(level - 1, 0)],
                channels[level],
                config.layers_per_block,
                norm,
                options,
                down=None if level == last else Halve(channels[level], level < TIMED_LEVELS, **options),
            )
            for level in range(len(channels))
        )
        self.mid_block = Level(channels[-1], channels[-1], 2, norm, options)
        self.norm_out = norm(channels[-1])
        self.conv_out = CausalConv3d(channels[-1], 2 * config.latent_channels, **options)

    def forward(self, x: Tensor, tails: Tails) -> Tensor:
        x = self.conv_in(x, tails)
        for level in (*self.down_blocks, self.mid_block):
            x = level(x, tails)
        return self.conv_out(F.silu(self.norm_out(x)), tails)


class Decoder(nn.Module):
    """A group of latents to frames."""

    def __init__(self, config: CausalVaeConfig, options: dict[str, Any]):
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return LatentNorm(channels, config.latent_channels, config.norm_groups, config.norm_eps, **options)

        channels, last = config.channels[::-1], len(config.channels) - 1
        self.conv_in = CausalConv3d(config.latent_channels, channels[0], **options)
        self.mid_block = Level(channels[0], channels[0], 2, norm, options)
        self.up_blocks = nn.ModuleList(
            Level(
                channels[max(level - 1, 0)],
                channels[level],
                config.layers_per_block + 1,
                norm,
                options,
                up=None if level == last else Double(channels[level], level < TIMED_LEVELS, **options),
            )
            for level in range(len(channels))
        )
        self.norm_out = norm(channels[-1])
        self.conv_out = CausalConv3d(channels[-1], 3, **options)

    def forward(self, latents: Tensor, tails: Tails) -> Tensor:
        x = self.conv_in(latents, tails)
        for level in (self.mid_block, *self.up_blocks):
            x = level(x, tails, latents)
        return self.conv_out(F.silu(normed(self.norm_out, x, latents)), tails)


def groups(count: int, size: int) -> list[slice]:
    """`count` frames or latents in groups of `size`; the first group also has the remainder."""
    first = min(count, size + count % size)
    return [slice(0, first), *(slice(start, start + size) for start in range(first, count, size))]


class CausalVae(nn.Module):
    """Videos to latents and back. Nothing of one call is left for the next."""

    def __init__(
        self,
        config: CausalVaeConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.config = config
        self.encoder = Encoder(config, options)
        self.decoder = Decoder(config, options)

    def moments(self, video: Tensor, check_cancel: Callable[[], None] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, `[B, latent_channels, k + 1, H/8, W/8]` each.

        Args:
            video: `[B, 3, 4k + 1, H, W]` in [-1, 1]; H and W are multiples of 8. One frame is an image.
            check_cancel: called before every group of frames; raises whatever means Cancel.

        Raises:
            FrameError: another number of frames, or another size.
        """
        frames, height, width = video.shape[2:]
        if frames % TEMPORAL_SCALE != 1:
            low = max(frames - 1, 0) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1
            raise FrameError(f"the VAE takes 4k + 1 frames, got {frames}; use {low} or {low + TEMPORAL_SCALE}")
        if height % SPATIAL_SCALE or width % SPATIAL_SCALE:
            raise FrameError(f"the VAE takes sizes in multiples of {SPATIAL_SCALE} pixels, got {width}x{height}")
        tails: Tails = {}
        parts = []
        for group in groups(frames, ENCODE_GROUP):
            if check_cancel:
                check_cancel()
            parts.append(self.encoder(video[:, :, group], tails))
        mean, log_variance = torch.cat(parts, dim=2).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, video: Tensor, check_cancel: Callable[[], None] | None = None) -> Tensor:
        """The most likely latents, without the scaling factor; arguments, shape and errors are those of `moments`."""
        return self.moments(video, check_cancel)[0]

    def decode_groups(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames `[B, 3, f, H, W]`, about in [-1, 1], group after group.

        However long the video, what is held is one group and the tails. `latents` `[B, latent_channels, n, h, w]` are
        those that `encode` gives, so without the scaling factor.
        """
        tails: Tails = {}
        for group in groups(latents.shape[2], DECODE_GROUP):
            yield self.decoder(latents[:, :, group], tails)

    def decode(
        self,
        latents: Tensor,
        tile: tuple[int, int] | None = None,
        check_cancel: Callable[[], None] | None = None,
    ) -> Tensor:
        """All frames, `[B, 3, N, 8h, 8w]`, about in [-1, 1]; `config.decoded_frames` says how many.

        Args:
            latents: as `encode` gives them, `[B, latent_channels, n, h, w]`.
            tile: height and width in pixels of tiles that are decoded one after the other and blended; default one
                tile. `config.default_tile` is the official size. Norms see one tile at a time, so tiles change
                the result.
            check_cancel: called before every group of latents; raises whatever means Cancel.

        Raises:
            SettingsError: tiles smaller than 16 pixels.
        """

        def frames(part: Tensor) -> Tensor:
            decoded = []
            for group in self.decode_groups(part):
                if check_cancel:
                    check_cancel()
                decoded.append(group)
            return torch.cat(decoded, dim=2)

        if tile is None:
            return frames(latents)
        if min(tile) < SMALLEST_TILE_PX:
            raise SettingsError(f"tiles need {SMALLEST_TILE_PX} pixels or more, got {tile[1]}x{tile[0]}")
        rows, columns = (side // SPATIAL_SCALE for side in tile)
        if latents.shape[-2] <= rows and latents.shape[-1] <= columns:
            return frames(latents)
        return decode_in_tiles(frames, latents, rows, columns)

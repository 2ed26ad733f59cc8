"""What the transformer sees of the frames that are known (reference: dropletvideo, section 7).

Known frames are encoded in a video whose other frames are black; a mask says which are which. Together these are the
"inpaint channels" next to the noisy latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import FrameError, SettingsError
from .config import SPATIAL_SCALE, TEMPORAL_SCALE, latent_count

REFERENCE_NOISE = 0.0563
"""Standard deviation of the noise on known frames that some models of the kind were trained with."""
UNKNOWN = -1.0
"""The pixel value of what is to be generated."""


@dataclass(frozen=True)
class KnownFrames:
    """A video of which only some is known.

    Attributes:
        video: `[1, 3, N, H, W]` in [0, 1]; anything where nothing is known.
        missing: `[1, 1, N, H, W]`, 1 where a pixel is to be generated, 0 where it is known.
    """

    video: Tensor
    missing: Tensor


def place_frames(
    num_frames: int, height: int, width: int, start: Tensor | None = None, end: Tensor | None = None
) -> KnownFrames:
    """Known first and last frames in a video of `num_frames`.

    Args:
        num_frames: 4k + 1.
        height: in pixels, a multiple of 8 as `width`.
        width: in pixels.
        start: first frames `[m, 3, H, W]` in [0, 1]; the weights were trained with 1 to 4.
        end: last frames `[n, 3, H, W]` in [0, 1]. Officially one; the mask channel does not show fewer than three.

    Raises:
        FrameError: a number of frames that cannot be encoded, or frames of another size.
        SettingsError: more known frames than the video has.
    """
    if num_frames % TEMPORAL_SCALE != 1:
        low = max(num_frames - 1, 0) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1
        raise FrameError(f"DropletVideo makes 4k + 1 frames, not {num_frames}; use {low} or {low + TEMPORAL_SCALE}")
    given = [frames for frames in (start, end) if frames is not None]
    for frames in given:
        if frames.shape[1:] != (3, height, width):
            raise FrameError(
                f"known frames of shape {list(frames.shape)} do not fit a video of {width}x{height} pixels; "
                f"bring them to [frames, 3, {height}, {width}]"
            )
    known = sum(map(len, given))
    if known > num_frames:
        raise SettingsError(
            f"{known} known frames do not fit into a video of {num_frames}; give fewer, or make it longer"
        )
    like = given[0] if given else torch.zeros(())
    video = like.new_zeros(1, 3, num_frames, height, width)
    missing = like.new_ones(1, 1, num_frames, height, width)
    if start is not None:
        video[0, :, : len(start)], missing[:, :, : len(start)] = start.movedim(1, 0), 0
    if end is not None and len(end):
        video[0, :, -len(end) :], missing[:, :, -len(end) :] = end.movedim(1, 0), 0
    return KnownFrames(video, missing)


def painted(known: KnownFrames) -> Tensor:
    """The video in [-1, 1], `[1, 3, N, H, W]`, with -1 wherever nothing is known."""
    return torch.where(known.missing < 0.5, known.video * 2 - 1, UNKNOWN)


def with_reference_noise(video: Tensor, noise: Tensor, strength: float = REFERENCE_NOISE) -> Tensor:
    """`video` plus `strength` times `noise` of its shape, except where a value is exactly -1, that is, unknown."""
    return torch.where(video == UNKNOWN, video, video + strength * noise)


def mask_channel(missing: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Which latents are known, `[1, 1, frames, height, width]`: 1 known, 0 to be generated.

    Args:
        missing: of pixels, `[1, 1, N, H, W]`.
        frames: latents, (N - 1)/4 + 1.
        height: of a latent.
        width: of a latent.

    The first frame stands alone and the others are sampled without averaging: latent k looks between frames 4k - 2 and
    4k - 1 only, so a last frame that is known alone does not show.
    """
    known = (missing < 0.5).float()
    first = F.interpolate(known[:, :, :1], size=(1, height, width), mode="trilinear", align_corners=False)
    if frames == 1:
        return first
    rest = F.interpolate(known[:, :, 1:], size=(frames - 1, height, width), mode="trilinear", align_corners=False)
    return torch.cat([first, rest], dim=2)


def inpaint_channels(
    known: KnownFrames,
    encode: Callable[[Tensor], Tensor],
    scaling_factor: float,
    latent_channels: int = 16,
    noise_strength: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mask and the latents of the known frames, `[1, k + 1, 1 + latent_channels, H/8, W/8]`, mask first.

    Args:
        known: a video of 4k + 1 frames.
        encode: videos `[1, 3, N, H, W]` in [-1, 1] to latents `[1, latent_channels, k + 1, H/8, W/8]`; the mode of
            the VAE's posterior, without the scaling factor.
        scaling_factor: of the VAE; the mask is multiplied by it, too.
        latent_channels: of the VAE.
        noise_strength: standard deviation of noise on the known frames, 0 for none. Officially `REFERENCE_NOISE` if the
            transformer's config.json has `add_noise_in_inpaint_model`.
        generator: draws that noise, in float32 on its own device; needed if there is any.

    Raises:
        SettingsError: noise without a generator.
    """
    if noise_strength and generator is None:
        raise SettingsError(f"noise of strength {noise_strength:g} on known frames needs a generator to draw it from")
    frames = latent_count(known.video.shape[2])
    height, width = (side // SPATIAL_SCALE for side in known.video.shape[-2:])
    if bool((known.missing >= 0.5).all()):
        # Where nothing is known, officially all channels are 0, which no encoded black video is.
        return known.video.new_zeros(1, frames, 1 + latent_channels, height, width)
    video = painted(known)
    if noise_strength and generator is not None:
        noise = torch.randn(video.shape, generator=generator, device=generator.device)
        video = with_reference_noise(video, noise.to(video), noise_strength)
    latents = encode(video)
    mask = mask_channel(known.missing, frames, height, width).to(latents)
    return scaling_factor * torch.cat([mask, latents], dim=1).transpose(1, 2)

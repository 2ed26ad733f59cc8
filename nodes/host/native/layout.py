"""How the latents of a native model stand for frames and pixels."""

from __future__ import annotations

from collections.abc import Sequence

from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.latent_layout import LatentLayout


def latent_layout(model: ModelPatcher, vae: VAE) -> LatentLayout:
    """How the latents of MODEL and VAE stand for frames.

    Raises `SettingsError` when the two do not belong together, or make no video this loop can continue.
    """
    latent_format = model.model.latent_format
    channels = vae.latent_channels
    if latent_format.latent_channels != channels:
        raise SettingsError(
            f"the model's latents have {latent_format.latent_channels} channels, the VAE's {channels}; "
            "connect the VAE that belongs to the model"
        )
    if latent_format.latent_dimensions == 2:
        return LatentLayout(1, axis=0)
    if latent_format.latent_dimensions != 3:
        raise SettingsError(
            f"this model's latents are not video latents ({latent_format.latent_dimensions} dimensions)"
        )
    ratio = vae.upscale_ratio
    count = ratio[0] if isinstance(ratio, (tuple, list)) else (lambda latents: latents)
    layout = LatentLayout(count(3) - count(2), axis=2)
    if [count(latents) for latents in (1, 2, 9)] != [layout.frames(latents) for latents in (1, 2, 9)]:
        raise SettingsError(
            f"this VAE makes {count(1)}, {count(2)} and {count(9)} frames of 1, 2 and 9 latents; "
            "only a first latent of 1 frame and then the same number of frames per latent can be continued"
        )
    return layout


def pixels_per_latent(vae: VAE) -> int:
    return vae.spacial_compression_encode()


def patch_px(model: ModelPatcher) -> int:
    """Latent pixels per side of what a transformer sees as one."""
    size = getattr(model.model.diffusion_model, "patch_size", 1)
    return size[-1] if isinstance(size, Sequence) else int(size)

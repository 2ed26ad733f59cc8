"""Noise levels of the ModelScope family and its official sampler, DDIM with eta 1 (reference: streamingmodelscope, 5).

Levels are given as sigma, noise per unit of signal, which is what k-diffusion samplers take.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ddim import leading_timesteps, scaled_linear_betas

BETA_START, BETA_END = 0.00085, 0.012


def published_alphas_cumprod() -> Tensor:
    """Signal variance at each of the 1000 levels, float64."""
    return (1 - scaled_linear_betas(BETA_START, BETA_END)).cumprod(0)


def modelscope_sigmas(steps: int) -> Tensor:
    """The official `[steps + 1]` levels, float32: "leading" timesteps with offset 1, then level 0 instead of none.

    The last entry is above 0: officially the last step still leaves the noise of the lowest level in the latent
    (`set_alpha_to_one` is off).
    """
    alphas = published_alphas_cumprod()[torch.cat([leading_timesteps(steps), torch.zeros(1, dtype=torch.long)])]
    return ((1 - alphas) / alphas).sqrt().float()


def ddim_eta_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float, noise: Tensor) -> Tensor:
    """One DDIM update on `x = latent + sigma * noise` (Song et al., arXiv:2010.02502, eq. 12 and 16).

    `eta` 0 is deterministic, 1 is the official, ancestral one; `noise` has unit variance and the shape of `x`.
    """
    fresh = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).clamp(min=0).sqrt()
    kept = (sigma_next**2 - fresh**2).clamp(min=0).sqrt()
    return denoised + kept * (x - denoised) / sigma + fresh * noise


def signal_scale(sigma: Tensor) -> Tensor:
    """What brings `latent + sigma * noise` back to unit variance; 1 at sigma 0."""
    return (1 + sigma**2).rsqrt()

"""DDIM with a cosine schedule rescaled to zero terminal signal, as the I2VGen-XL enhancer uses it.

Levels are counted as timesteps 0 to 999. `alphas_cumprod` is the share of signal variance at each (reference: enhancer,
section 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import SettingsError

TRAIN_TIMESTEPS = 1000
LEAST_SIGNAL = 4.8973451890853435e-08
"""Signal variance that stands in for none at all where noise is measured per signal; ComfyUI's own choice."""


def cosine_betas(timesteps: int = TRAIN_TIMESTEPS, max_beta: float = 0.999) -> Tensor:
    """Noise added per level, `[timesteps]` float32 (Nichol & Dhariwal, arXiv:2102.09672, eq. 17)."""

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [signal((i + 1) / timesteps) / signal(i / timesteps) for i in range(timesteps)]
    return torch.tensor([min(1 - ratio, max_beta) for ratio in ratios], dtype=torch.float32)


def scaled_linear_betas(start: float, end: float, timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """Noise added per level, `[timesteps]` float64, whose roots rise linearly ("scaled linear")."""
    return torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas whose last level holds no signal at all (Lin et al., arXiv:2305.08891, algorithm 1)."""
    # Single-precision roots are rounded differently from processor to processor, and one unit in the last place is
    # 0.07 % of the noise at the first level. Taken in double precision they are the same everywhere.
    roots = (1 - betas).cumprod(0).double().sqrt().float()
    first, last = roots[0].clone(), roots[-1].clone()
    roots = (roots - last) * (first / (first - last))
    signal = roots**2
    return 1 - torch.cat([signal[:1], signal[1:] / signal[:-1]])


def enhancer_alphas_cumprod() -> Tensor:
    """Signal variance at each of the 1000 levels of the I2VGen-XL enhancer, float32; exactly 0 at the last."""
    return (1 - zero_terminal_snr(cosine_betas())).cumprod(0)


def leading_timesteps(steps: int, timesteps: int = TRAIN_TIMESTEPS, offset: int = 1) -> Tensor:
    """Timesteps in "leading" spacing: `[steps]` int64, falling, multiples of the stride plus `offset`.

    Raises:
        SettingsError: fewer than 1 or more than `timesteps - offset` steps.
    """
    if not 1 <= steps <= timesteps - offset:
        raise SettingsError(f"the enhancer takes 1 to {timesteps - offset} steps, got {steps}")
    return torch.arange(steps - 1, -1, -1) * (timesteps // steps) + offset


def kept_timesteps(steps: int, strength: float) -> Tensor:
    """The last `int(steps * strength)` of `leading_timesteps`: where SDEdit starts (Meng et al., arXiv:2108.01073).

    Raises:
        SettingsError: a strength outside (0, 1] or one that leaves no step, or a number of steps that cannot be.
    """
    if not 0 < strength <= 1:
        raise SettingsError(f"strength must be above 0 and at most 1, got {strength:g}")
    timesteps = leading_timesteps(steps)
    kept = min(int(steps * strength), steps)
    if not kept:
        raise SettingsError(
            f"strength {strength:g} of {steps} steps leaves no step to run: "
            f"raise the strength to {math.ceil(100 / steps) / 100:g} or take more steps"
        )
    return timesteps[steps - kept :]


def sigmas_of(timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noise per unit of signal at each timestep, float32, with a final 0: what k-diffusion samplers take."""
    sigmas = noise_per_signal(alphas_cumprod)[timesteps]
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def enhancer_sigmas(steps: int, strength: float) -> Tensor:
    """Sigmas of the enhancer's official timesteps, `[kept steps + 1]` float32, falling to 0.

    Raises:
        SettingsError: as `kept_timesteps`.
    """
    return sigmas_of(kept_timesteps(steps, strength), enhancer_alphas_cumprod())


def noise_per_signal(alphas_cumprod: Tensor) -> Tensor:
    """Sigma of every level, float32; finite also where no signal is left."""
    alphas = alphas_cumprod.double().clamp(min=LEAST_SIGNAL)
    return ((1 - alphas) / alphas).sqrt().float()


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """`clean` brought to the level with signal variance `alpha` (a scalar tensor)."""
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def ddim_step(x: Tensor, velocity: Tensor, alpha: Tensor, alpha_next: Tensor) -> Tensor:
    """One deterministic update from signal variance `alpha` to `alpha_next` with a v-prediction.

    Song et al., arXiv:2010.02502, eq. 12 with eta 0; v as in Salimans & Ho, arXiv:2202.00512.
    """
    clean = alpha.sqrt() * x - (1 - alpha).sqrt() * velocity
    noise = alpha.sqrt() * velocity + (1 - alpha).sqrt() * x
    return alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * noise

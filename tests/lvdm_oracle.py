"""What LVDM's released sampler does to latents and with what the network says (reference: lvdm, section 6)."""

from __future__ import annotations

from torch import Tensor


def overwritten(x: Tensor, known: Tensor, places: Tensor) -> Tensor:
    """`x` `[B, C, T, h, w]` with the latents at `places` replaced by `known` `[B, C, n, h, w]`, in their order."""
    out = x.clone()
    out[:, :, places.to(x.device)] = known.to(x)
    return out


def guided(told: Tensor, untold: Tensor, weight: float) -> Tensor:
    """Away from what the model says without known latents; 0 leaves `told` as it is ("cfg_original")."""
    return told + weight * (told - untold)

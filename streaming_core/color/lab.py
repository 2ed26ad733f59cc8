"""CIE Lab (D65) of sRGB colors, both ways, by kornia.

kornia is imported when a color is first converted: the import takes 0.2 s (0.4 s in release 0.7.1), and what measures
no colors needs none of it. Against the formulas of CIE 15 it is off by at most 0.005 in L, a or b, because its white
point and its matrix are rounded differently, so that white has b = 0.005. Tests allow 0.01; an eye sees about 1.
"""

from __future__ import annotations

from torch import Tensor


def _planes(colors: Tensor) -> Tensor:
    """Colors `[..., 3]` as an image `[3, 1, n]`, which is what kornia takes."""
    return colors.reshape(-1, 3).T.unsqueeze(1)


def srgb_to_lab(colors: Tensor) -> Tensor:
    """CIE 1976 L*a*b* of sRGB colors `[..., 3]` in 0..1, in float32; L in 0..100."""
    from kornia.color import rgb_to_lab

    return rgb_to_lab(_planes(colors.float())).squeeze(1).T.reshape(colors.shape)


def lab_to_srgb(lab: Tensor) -> Tensor:
    """sRGB in 0..1, clamped to the gamut, of CIE 1976 L*a*b* `[..., 3]` (D65); the inverse of `srgb_to_lab`."""
    from kornia.color import lab_to_rgb

    return lab_to_rgb(_planes(lab.float())).squeeze(1).T.reshape(lab.shape)

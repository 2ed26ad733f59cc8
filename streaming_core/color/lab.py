"""CIE Lab (D65) of sRGB colors."""

from __future__ import annotations

import torch
from torch import Tensor

# sRGB to XYZ (IEC 61966-2-1); the sum of a row is that axis of the D65 white point.
RGB_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
XYZ_TO_OPPONENT = torch.tensor([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])


def srgb_to_lab(colors: Tensor) -> Tensor:
    """CIE 1976 L*a*b* of sRGB colors `[..., 3]` in 0..1; L in 0..100."""
    colors = colors.float()
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    to_xyz = RGB_TO_XYZ.to(colors.device)
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdim=True)).T
    cubes = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-4) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return cubes @ XYZ_TO_OPPONENT.to(colors.device).T - cubes.new_tensor([16.0, 0.0, 0.0])

"""HDR and wide gamut to what every screen shows: BT.709 colors in standard dynamic range.

What is done, and in which order: the transfer function is undone (PQ: SMPTE ST 2084; HLG: ITU-R BT.2100 with the system
gamma 1.2 of a screen of 1000 cd/m2; other ones: ITU-R BT.1886, gamma 2.4), light is counted in units of 203 cd/m2 (HDR
reference white, ITU-R BT.2408), primaries are converted in linear light and clipped to BT.709, HDR is brought to
standard range by Hable's filmic curve on the brightest of the three components, with 10 units as white, and the result
is encoded for BT.1886.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

# Codes of ITU-T H.273.
PQ, HLG = 16, 18
BT2020, P3_DCI, P3_D65 = 9, 11, 12
_REFERENCE_WHITE = 203.0
_HLG_PEAK = 1000.0
_PEAK = 10.0
_GAMMA = 2.4
_D65, _DCI_WHITE = (0.3127, 0.3290), (0.314, 0.351)
_BT709_PRIMARIES = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)), _D65
_WIDE_PRIMARIES = {
    BT2020: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), _D65),
    P3_DCI: (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), _DCI_WHITE),
    P3_D65: (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), _D65),
}
_LEVELS = 65536


@dataclass(frozen=True)
class ToSdr:
    """The way of one file's colors to BT.709 in standard range; `transfer` and `primaries` as in ITU-T H.273."""

    transfer: int
    primaries: int

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (PQ, HLG)

    def __call__(self, rgb: np.ndarray) -> torch.Tensor:
        """An image `[H, W, 3]` of uint16 over its full range as float32 in 0..1."""
        light = torch.from_numpy(_light_table(self.transfer)[rgb])
        if self.transfer == HLG:  # the screen's own gamma depends on the luminance of each pixel
            luminance = light @ torch.tensor([0.2627, 0.6780, 0.0593])
            light = light * luminance.clamp(min=1e-6).pow(0.2).unsqueeze(-1) * (_HLG_PEAK / _REFERENCE_WHITE)
        if self.primaries in _WIDE_PRIMARIES:
            light = light @ torch.from_numpy(_to_bt709(self.primaries)).T
        light = light.clamp(min=0)
        if self.is_hdr:
            brightest = light.amax(dim=-1, keepdim=True).clamp(min=1e-6)
            light = light * (_filmic(brightest) / _filmic(torch.tensor(_PEAK)) / brightest)
        return light.clamp(0, 1).pow(1 / _GAMMA)


def to_sdr(transfer: int, primaries: int) -> ToSdr | None:
    """What a file with these codes needs; None where it is BT.709 or near to it already."""
    if transfer in (PQ, HLG) or primaries in _WIDE_PRIMARIES:
        return ToSdr(transfer, primaries)
    return None


@lru_cache(maxsize=4)
def _light_table(transfer: int) -> np.ndarray:
    """Linear light for each level of 16 bits: in units of reference white for PQ, of the scene for HLG, else 0..1."""
    signal = np.linspace(0, 1, _LEVELS)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        light = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * 10000 / _REFERENCE_WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**_GAMMA
    return light.astype(np.float32)


@lru_cache(maxsize=4)
def _to_bt709(primaries: int) -> np.ndarray:
    """From linear RGB of these primaries to that of BT.709 `[3, 3]`; white stays white."""
    matrix: np.ndarray = np.linalg.inv(_to_xyz(*_BT709_PRIMARIES)) @ _adapted(primaries)
    return matrix.astype(np.float32)


def _adapted(primaries: int) -> np.ndarray:
    """To XYZ, the white point scaled to D65 (von Kries in XYZ), which matters for cinema's P3 only."""
    corners, white = _WIDE_PRIMARIES[primaries]
    adapted: np.ndarray = np.diag(_white_xyz(_D65) / _white_xyz(white)) @ _to_xyz(corners, white)
    return adapted


def _to_xyz(corners: tuple[tuple[float, float], ...], white: tuple[float, float]) -> np.ndarray:
    """The matrix of SMPTE RP 177 from the chromaticities of primaries and white."""
    columns: np.ndarray = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in corners]).T
    scaled: np.ndarray = columns * np.linalg.solve(columns, _white_xyz(white))
    return scaled


def _white_xyz(white: tuple[float, float]) -> np.ndarray:
    x, y = white
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _filmic(light: torch.Tensor) -> torch.Tensor:
    """John Hable's curve ("Uncharted 2: HDR Lighting", GDC 2010)."""
    a, b, c, d, e, f = 0.15, 0.50, 0.10, 0.20, 0.02, 0.30
    return (light * (a * light + c * b) + d * e) / (light * (a * light + b) + d * f) - e / f

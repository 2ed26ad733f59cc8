"""Decoded YUV of more than eight bits as RGB, exactly: swscale is up to two of 1023 steps too dark there."""

from __future__ import annotations

import av
import numpy as np

from .chroma import samples_of, with_full_chroma

# What red and blue weigh in brightness, by the code of ITU-T H.273.
_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
_SCALING = 4 | 0x40000  # SWS_BICUBIC | SWS_ACCURATE_RND


def deep_rgb(frame: av.VideoFrame, height: int, width: int, matrix: int, full_range: bool) -> np.ndarray | None:
    """`[height, width, 3]`, or 4 with alpha, as uint16 over its full range; None for what is no planar YUV.

    matrix: code of ITU-T H.273, one of BT.709's, BT.601's, FCC's, SMPTE 240M's or BT.2020's.
    """
    image = with_full_chroma(frame)
    name, bits = image.format.name, max(component.bits for component in image.format.components)
    if name not in (f"yuv444p{bits}le", f"yuva444p{bits}le"):
        return None
    if (image.height, image.width) != (height, width):
        image = image.reformat(width=width, height=height, format=name, interpolation=_SCALING)
    planes = [samples_of(plane, np.dtype("<u2")).astype(np.float32) for plane in image.planes]
    step = np.float32(2 ** (bits - 8))
    largest = np.float32(2**bits - 1)
    zero, luma, color = (np.float32(0), largest, largest) if full_range else (16 * step, 219 * step, 224 * step)
    bright = (planes[0] - zero) / luma
    blue_difference, red_difference = ((plane - 128 * step) / color for plane in planes[1:3])
    of_red, of_blue = map(np.float32, _WEIGHTS[matrix])
    red = bright + 2 * (1 - of_red) * red_difference
    blue = bright + 2 * (1 - of_blue) * blue_difference
    green = (bright - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    channels = [red, green, blue, *(plane / largest for plane in planes[3:])]
    rounded = [np.rint(channel.clip(0, 1) * np.float32(65535)).astype(np.uint16) for channel in channels]
    return np.stack(rounded, axis=-1)

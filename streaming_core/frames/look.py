"""How the stored images of a video are to be shown: upright, in square pixels, in BT.709 colors, without alpha."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from .chroma import with_full_chroma
from .deep import deep_rgb
from .hdr import HLG, ToSdr, to_sdr
from .pixels import FULL_RANGE, LIMITED_RANGE, format_bits
from .stream import size_text

# swscale's matrices, from the code in the stream (ITU-T H.273); its own codes are the same but for these.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709, _BT601 = 1, 5
# Untagged images of SDTV's sizes are BT.601, larger ones BT.709, as players take them.
_SD_HEIGHT, _SD_WIDTH = 576, 1024
# Without these, swscale cuts off instead of rounding: every reading darkens and tints by about one gray level.
# Not bilinear: with these flags it gives garbage for more than eight bits in some versions.
_SCALING = 4 | 0x40000 | 0x2000  # SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT
_NO_MATRIX = 4  # as in `pixels`, by swscale's number
_SQUARE = Fraction(1, 100)
_WIDEST_PIXEL = 4


@dataclass(frozen=True)
class Orientation:
    """How a stored image is to be shown: first mirrored left to right (if so), then turned counter-clockwise."""

    quarter_turns: int = 0
    mirrored: bool = False


@dataclass(frozen=True)
class Look:
    """How the images of one file are shown. Made by `look_of` from its first frame.

    Attributes:
        stored_height, stored_width: the images in the file.
        height, width: the same in square pixels, before they are turned.
        orientation: how they are turned.
        colors: the way to BT.709 in standard range; None where they are that already.
        bits: of the stored values.
        deep: whether images have more than eight bits, or are computed, so that they are float32; else they are uint8.
        alpha: whether they may be transparent; what shows through is black.
    """

    stored_height: int
    stored_width: int
    height: int
    width: int
    orientation: Orientation
    colors: ToSdr | None
    bits: int
    deep: bool
    alpha: bool

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width as shown."""
        size = (self.height, self.width)
        return size[::-1] if self.orientation.quarter_turns % 2 else size

    def image(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> torch.Tensor:
        """A decoded frame as it is shown: `[H, W, 3]`, uint8 in 0..255 or, where `deep`, float32 in 0..1."""
        rgb = self._rgb(frame, reformatter)
        if self.alpha:
            rgb = over_black(rgb)
        turned = np.rot90(rgb[:, ::-1] if self.orientation.mirrored else rgb, self.orientation.quarter_turns)
        whole = np.ascontiguousarray(turned)
        if self.colors is not None:
            return self.colors(whole)
        return torch.from_numpy(whole.astype(np.float32)) / 65535 if self.deep else torch.from_numpy(whole)

    def _rgb(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
        """`[H, W, 3 or 4]` as stored, uint8 or uint16; the matrix and range stored with the frame are undone."""
        fmt = frame.format
        target = ("rgba64le" if self.deep else "rgba") if self.alpha else ("rgb48le" if self.deep else "rgb24")
        size = {"width": self.width, "height": self.height}
        if fmt.is_rgb:
            return reformatter.reformat(frame, **size, format=target, interpolation=_SCALING).to_ndarray()
        full = frame.color_range == FULL_RANGE or fmt.name.startswith("yuvj")
        untagged = _BT709 if frame.height > _SD_HEIGHT or frame.width > _SD_WIDTH else _BT601
        matrix = int(frame.colorspace) if int(frame.colorspace) in _MATRICES else untagged
        deep = deep_rgb(frame, self.height, self.width, matrix, full) if self.deep else None
        if deep is not None:
            return deep
        return reformatter.reformat(
            with_full_chroma(frame),
            **size,
            format=target,
            src_colorspace=_MATRICES[matrix],
            dst_colorspace=_NO_MATRIX,
            src_color_range=FULL_RANGE if full else LIMITED_RANGE,
            dst_color_range=FULL_RANGE,
            interpolation=_SCALING,
        ).to_ndarray()


def look_of(frame: av.VideoFrame, stream: av.VideoStream) -> Look:
    """How a file is shown, from its first frame and what its container says."""
    context = stream.codec_context
    colors = to_sdr(int(context.color_trc or 0), int(context.color_primaries or 0))
    height, width = _square(frame.height, frame.width, stream.sample_aspect_ratio)
    names = [component.is_alpha for component in frame.format.components]
    bits = format_bits(frame.format.name)
    return Look(
        frame.height,
        frame.width,
        height,
        width,
        orientation_of(frame),
        colors,
        bits,
        colors is not None or bits > 8,
        any(names) or frame.format.has_palette,
    )


def notes_of(look: Look, frame: av.VideoFrame, deinterlaced: bool) -> tuple[str, ...]:
    """What is shown otherwise than it is stored, and what is wrong with it, a sentence each."""
    notes = []
    if (look.height, look.width) != (frame.height, frame.width):
        notes.append(
            f"its pixels are not square: {size_text(frame.height, frame.width)} is shown as "
            f"{size_text(look.height, look.width)}"
        )
    if look.colors is not None and look.colors.is_hdr:
        kind = "HLG" if look.colors.transfer == HLG else "PQ"
        notes.append(f"it is HDR ({kind}) and is tone-mapped to standard dynamic range in BT.709 colors")
    elif look.colors is not None:
        notes.append("its wide color gamut is converted to BT.709")
    if frame.interlaced_frame and not deinterlaced:
        notes.append("it is interlaced: moving edges look like combs; switch on deinterlace in Stream from Video")
    if look.alpha and _is_transparent(look, frame):
        notes.append("its transparent parts are laid over black")
    return tuple(notes)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The orientation in a frame's display matrix, to the nearest quarter turn."""
    attached = cast(SideDataContainer, frame.side_data)  # which PyAV's own types take for a plain dictionary
    for number in range(len(attached)):
        data = attached[number]
        if data.type == SideDataType.DISPLAYMATRIX:
            a, b, _, c, d = struct.unpack("=9i", bytes(data)[:36])[:5]
            mirrored = a * d - b * c < 0
            if mirrored:
                a, b = -a, -b
            return Orientation(round(-math.degrees(math.atan2(b, a)) / 90) % 4, mirrored)
    return Orientation()


def _square(height: int, width: int, pixel: Fraction | None) -> tuple[int, int]:
    """The size in square pixels; the longer side of a pixel decides, so that nothing is lost."""
    if not pixel or abs(pixel - 1) <= _SQUARE or not Fraction(1, _WIDEST_PIXEL) <= pixel <= _WIDEST_PIXEL:
        return height, width
    return (height, round(width * pixel)) if pixel > 1 else (round(height / pixel), width)


def over_black(rgba: np.ndarray) -> np.ndarray:
    """`[H, W, 4]`, uint8 or uint16, as `[H, W, 3]`: whatever hides in transparent parts is not shown."""
    largest = np.iinfo(rgba.dtype).max
    alpha = rgba[..., 3:]
    if (alpha == largest).all():
        return rgba[..., :3]
    wide = rgba[..., :3].astype(np.uint32) * alpha
    mixed: np.ndarray = ((wide + largest // 2) // largest).astype(rgba.dtype)
    return mixed


def _is_transparent(look: Look, frame: av.VideoFrame) -> bool:
    rgba = look._rgb(frame, VideoReformatter())
    return bool((rgba[..., 3] != np.iinfo(rgba.dtype).max).any())

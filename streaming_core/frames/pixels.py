"""Between float frames and the image formats of video codecs."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType

from ..errors import FrameError
from .stream import to_rgb

# Codes of ITU-T H.273 as FFmpeg numbers them.
BT709 = 1
LIMITED_RANGE, FULL_RANGE = 1, 2
# How swscale's matrices are called by PyAV, from the code in the stream.
# Untagged images are read as BT.601, which is what FFmpeg and the host do with them.
_MATRICES = {1: "itu709", 4: "fcc", 5: "itu601", 6: "itu601", 7: "smpte240m"}
# Some PyAV versions skip the matrix when both sides of a conversion name the same one. The side that is RGB has no
# matrix, so it is given one that no video uses.
_NO_MATRIX = "fcc"


@dataclass(frozen=True)
class Orientation:
    """How a stored image is to be shown: first mirrored left to right (if so), then turned counter-clockwise."""

    quarter_turns: int = 0
    mirrored: bool = False


UPRIGHT = Orientation()


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
    return UPRIGHT


def quantize(frames: torch.Tensor, bits: int = 8) -> np.ndarray:
    """Frames `[F, H, W, C]` in 0..1 as `[F, H, W, 3]` uint8, or uint16 over its full range for `bits` above 8; rounded.

    Raises:
        FrameError: a value is not a number; such a video would turn black or noisy without a word.
    """
    rgb = frames if frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == torch.float32 else to_rgb(frames)
    largest = 255 if bits <= 8 else 65535
    images = np.empty(rgb.shape, np.uint8 if bits <= 8 else np.uint16)
    for number, frame in enumerate(rgb):  # frame by frame: the work stays in the processor's caches
        scaled = (frame * largest).round_().clamp_(0, largest)
        if torch.isnan(scaled.sum()):
            raise FrameError(
                f"frame {number} of a slice of {len(rgb)} holds values that are not numbers; "
                "the model overflowed, run it in float32 or bfloat16"
            )
        images[number] = scaled.to(torch.uint8 if bits <= 8 else torch.int32).cpu().numpy()
    return images


def format_bits(pixel_format: str) -> int:
    """Bits per component of a pixel format."""
    return max(component.bits for component in av.VideoFormat(pixel_format).components)


def size_steps(pixel_format: str) -> tuple[int, int]:
    """Multiples that height and width must be of: 2 where the chroma of `pixel_format` is halved, else 1."""
    fmt = av.VideoFormat(pixel_format)
    if fmt.is_rgb:
        return 1, 1
    return (2 if fmt.chroma_height(16) == 8 else 1), (2 if fmt.chroma_width(16) == 8 else 1)


def pad_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image `[H, W, 3]`, its last row and column repeated up to `height` x `width`."""
    missing = (height - image.shape[0], width - image.shape[1])
    if missing == (0, 0):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def to_video_frame(image: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """An image `[H, W, 3]`, uint8 or uint16, as a frame of `pixel_format`, BT.709 in limited range where it is YUV."""
    source = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(image), format="rgb24" if image.dtype == np.uint8 else "rgb48le"
    )
    if av.VideoFormat(pixel_format).is_rgb:
        return source.reformat(format=pixel_format)
    frame = source.reformat(format=pixel_format, src_colorspace=_NO_MATRIX, dst_colorspace="itu709")
    frame.colorspace = BT709
    frame.color_range = LIMITED_RANGE
    return frame


def from_video_frame(frame: av.VideoFrame, orientation: Orientation = UPRIGHT) -> torch.Tensor:
    """A decoded frame as float32 `[H, W, 3]` in 0..1, as it is to be shown.

    The matrix and range stored with the frame are used; formats with more than 8 bits keep them; alpha is dropped.
    """
    fmt = frame.format
    deep = max(component.bits for component in fmt.components) > 8
    target = "rgb48le" if deep else "rgb24"
    if fmt.is_rgb:
        rgb = frame.reformat(format=target)
    else:
        full = frame.color_range == FULL_RANGE or fmt.name.startswith("yuvj")
        rgb = frame.reformat(
            format=target,
            src_colorspace=_MATRICES.get(int(frame.colorspace), "itu601"),
            dst_colorspace=_NO_MATRIX,
            src_color_range=FULL_RANGE if full else LIMITED_RANGE,
            dst_color_range=FULL_RANGE,
        )
    image = rgb.to_ndarray()
    image = np.rot90(image[:, ::-1] if orientation.mirrored else image, orientation.quarter_turns)
    if deep:
        return torch.from_numpy(image.astype(np.float32)) / 65535
    return torch.from_numpy(np.ascontiguousarray(image)).to(torch.float32) / 255

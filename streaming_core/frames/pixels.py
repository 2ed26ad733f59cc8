"""Between float frames and the image formats of video codecs."""

from __future__ import annotations

import av
import numpy as np
import torch

from ..errors import FrameError
from .stream import to_rgb

# Codes of ITU-T H.273 as FFmpeg numbers them.
BT709 = 1
LIMITED_RANGE, FULL_RANGE = 1, 2
# Some PyAV versions skip the matrix when both sides of a conversion name the same one. The side that is RGB has no
# matrix, so it is given one that no video uses.
_NO_MATRIX = "fcc"


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

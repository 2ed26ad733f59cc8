"""Between float frames and the image formats of video codecs."""

from __future__ import annotations

import av
import numpy as np
import torch

from .slices import checked
from .stream import to_rgb

# Codes of ITU-T H.273 as FFmpeg numbers them.
BT709 = 1
LIMITED_RANGE, FULL_RANGE = 1, 2
# Some PyAV versions skip the matrix when both sides of a conversion name the same one. The side that is RGB has no
# matrix, so it is given one that no video uses.
_NO_MATRIX = "fcc"
_LUMA = np.array([0.2126, 0.7152, 0.0722])
_BT709_MATRIX = np.stack([_LUMA, (np.eye(3)[2] - _LUMA) / 1.8556, (np.eye(3)[0] - _LUMA) / 1.5748])
"""Brightness (0..1), blue and red difference (-0.5..0.5) of red, green, blue (0..1)."""
_ROWS = 32
"""Rows that are converted at a time: an even number that stays in the processor's caches."""
# How swscale makes YUV: color as the mean of the pixels that share it, which is what reading repeats for each of them
# (`chroma`), so that saving again changes nothing. Older PyAV versions have only the numbers.
_TO_YUV = 0x20 | 0x40000 | 0x4000  # SWS_AREA | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP


def quantize(frames: torch.Tensor, bits: int = 8, first: int = 0) -> np.ndarray:
    """Frames `[F, H, W, C]` in 0..1 as `[F, H, W, 3]` uint8, or uint16 over its full range for `bits` above 8; rounded.

    Frames that are uint8 already keep their values exactly. `first` is the number of the first frame, for the error.

    Raises:
        NotNumbersError: NaN or infinity; such a video would turn black or noisy without a word.
    """
    if frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[-1] == 3:
        stored = frames.cpu().numpy()
        return stored if bits <= 8 else stored * np.uint16(257)
    is_rgb = frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == torch.float32
    rgb = frames if is_rgb else to_rgb(frames, first=first)
    largest = 255 if bits <= 8 else 65535
    images = np.empty(rgb.shape, np.uint8 if bits <= 8 else np.uint16)
    for number, frame in enumerate(rgb):
        checked(frame[None], first + number)
        for row in range(0, frame.shape[0], _ROWS):  # few rows: the work stays in the processor's caches
            scaled = (frame[row : row + _ROWS] * largest).round_().clamp_(0, largest)
            images[number, row : row + _ROWS] = scaled.to(torch.uint8 if bits <= 8 else torch.int32).cpu().numpy()
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
    """An image `[H, W, 3]`, uint8 or uint16, as a frame of `pixel_format`, BT.709 in limited range where it is YUV.

    Values are rounded to the nearest of the format; the color of 2x2 or 2x1 pixels that share one is their mean.
    """
    is_rgb = av.VideoFormat(pixel_format).is_rgb
    if format_bits(pixel_format) > 8:
        # Not by swscale: from more than 8 bits its YUV is up to 4 of 1023 too bright, and RGB loses its last bits.
        frame = _deep_frame(image, pixel_format)
    else:
        source = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if is_rgb:
            return source.reformat(format=pixel_format)
        frame = source.reformat(
            format=pixel_format, src_colorspace=_NO_MATRIX, dst_colorspace="itu709", interpolation=_TO_YUV
        )
    if not is_rgb:
        frame.colorspace = BT709
        frame.color_range = LIMITED_RANGE
    return frame


def _deep_frame(image: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """An image as a frame of a planar format with 16 bits per value; a few rows at a time, as `quantize`."""
    frame = av.VideoFrame(image.shape[1], image.shape[0], pixel_format)
    convert = _rgb_planes if frame.format.is_rgb else _yuv_planes
    # Lines in memory are longer than those of the image.
    lines = [np.zeros((plane.height, plane.line_size // 2), "<u2") for plane in frame.planes]
    for row in range(0, image.shape[0], _ROWS):
        for values, part in zip(lines, convert(image[row : row + _ROWS], pixel_format), strict=True):
            first = row * values.shape[0] // image.shape[0]
            values[first : first + part.shape[0], : part.shape[1]] = part
    for plane, values in zip(frame.planes, lines, strict=True):
        plane.update(values.tobytes())
    return frame


def _rgb_planes(image: np.ndarray, pixel_format: str) -> list[np.ndarray]:
    """Rows of the planes of a deep planar RGB format: green, blue, red."""
    largest = 2 ** format_bits(pixel_format) - 1
    whole = np.iinfo(image.dtype).max
    values = (image.astype(np.uint32) * largest + whole // 2) // whole
    return [values[..., channel] for channel in (1, 2, 0)]


def _yuv_planes(image: np.ndarray, pixel_format: str) -> list[np.ndarray]:
    """Rows of the planes of a deep YUV format in BT.709, limited range: brightness, blue and red difference."""
    rows, columns = size_steps(pixel_format)
    step = 2.0 ** (format_bits(pixel_format) - 8)
    pixels = image.astype(np.float32) / np.iinfo(image.dtype).max
    shared = sum(pixels[row::rows, column::columns] for row in range(rows) for column in range(columns))
    parts = (pixels, shared / (rows * columns), shared / (rows * columns))
    matrix = _BT709_MATRIX * (np.array([[219], [224], [224]]) * step)
    zeros = np.array([16, 128, 128]) * step
    return [
        np.rint(part @ row.astype(np.float32) + np.float32(zero))
        for part, row, zero in zip(parts, matrix, zeros, strict=True)
    ]

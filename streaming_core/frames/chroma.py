"""Images with chroma for every pixel.

Where a format stores less of it, each sample is repeated for the pixels that it was averaged from. Averaging it again
when the image is saved then changes nothing; interpolation looks smoother once, but blurs and shifts colors more with
every save.
"""

from __future__ import annotations

import av
import numpy as np

_SUBSAMPLED = {(8, 8): "420", (16, 8): "422", (8, 16): "440", (16, 4): "411", (4, 4): "410"}
"""Rows and columns of chroma for 16 of luma."""


def with_full_chroma(frame: av.VideoFrame) -> av.VideoFrame:
    """A decoded frame as YUV 4:4:4 of the same depth and values; RGB, gray and 4:4:4 stay as they are.

    The result has no tags of color.
    """
    fmt = frame.format
    rows, columns = 16, 16
    if not fmt.is_rgb and len(fmt.components) >= 3:
        rows, columns = fmt.chroma_height(16), fmt.chroma_width(16)
    if (rows, columns) == (16, 16) or (rows, columns) not in _SUBSAMPLED:
        return frame
    bits = max(component.bits for component in fmt.components)
    alpha = "a" if any(component.is_alpha for component in fmt.components) else ""
    depth = "" if bits == 8 else f"{bits}le"
    planar = f"yuv{alpha}{_SUBSAMPLED[rows, columns]}p{depth}"
    try:
        target = av.VideoFrame(frame.width, frame.height, f"yuv{alpha}444p{depth}")
        if fmt.name.replace("yuvj", "yuv") != planar:
            frame = frame.reformat(format=planar)  # the same samples in planes of their own
    except ValueError:  # FFmpeg has no such format
        return frame
    kind = np.dtype("u1" if bits == 8 else "<u2")
    for number, (plane, source) in enumerate(zip(target.planes, frame.planes, strict=True)):
        samples = samples_of(source, kind)
        if number in (1, 2):
            samples = samples.repeat(16 // rows, axis=0).repeat(16 // columns, axis=1)
        samples_of(plane, kind)[:] = samples[: frame.height, : frame.width]
    return target


def samples_of(plane: av.video.plane.VideoPlane, kind: np.dtype) -> np.ndarray:
    """The samples `[rows, columns]` of a plane, without the padding of its lines."""
    lines: np.ndarray = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
    return lines[: plane.height, : plane.width]

"""Small videos and video files for the tests of frame streams."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from streaming_core.frames import FrameStream, to_rgb


def smooth_video(num_frames: int, height: int, width: int) -> torch.Tensor:
    """`[F, H, W, 3]`: a soft wave that moves, different in every frame, color and direction; kind to lossy codecs."""
    time = torch.arange(num_frames).view(-1, 1, 1) / 7
    y = torch.linspace(0, 1, height).view(1, -1, 1)
    x = torch.linspace(0, 1, width).view(1, 1, -1)
    phases = (3 * x + time, 2 * y - time, 2 * x + y + 2 * time)
    return torch.stack([0.5 + 0.4 * torch.sin(phase.expand(num_frames, height, width)) for phase in phases], dim=-1)


def counted_video(num_frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """`[F, H, W, 3]`: every frame shows its own number as 16 black or white fields; see `numbers_in`."""
    bits = (torch.arange(num_frames)[:, None] >> torch.arange(16)) & 1
    rows = bits.view(num_frames, 2, 8).float()
    images = rows.repeat_interleave(height // 2, dim=1).repeat_interleave(width // 8, dim=2)
    return images.unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()


def numbers_in(frames: torch.Tensor) -> list[int]:
    """The numbers that frames of `counted_video` show, also after a lossy codec."""
    height, width = frames.shape[1] // 2, frames.shape[2] // 8
    fields = (
        frames[:, : height * 2, : width * 8].mean(-1).unflatten(1, (2, height)).unflatten(3, (8, width)).mean((2, 4))
    )
    return ((fields.flatten(1) > 0.5).long() << torch.arange(16)).sum(1).tolist()


@dataclass(frozen=True)
class LazyVideo(FrameStream):
    """A video made when it is read; nothing of it is kept."""

    num_frames: int
    height: int
    width: int
    fps: Fraction = Fraction(24)

    def __len__(self) -> int:
        return self.num_frames

    def _read(self, start: int, stop: int) -> torch.Tensor:
        ramp = torch.linspace(0, 1, self.width).expand(stop - start, self.height, self.width)
        shift = torch.arange(start, stop).view(-1, 1, 1) / 50
        return ((ramp + shift) % 1).unsqueeze(-1).repeat(1, 1, 1, 3)


def psnr(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Peak signal to noise ratio in dB, peak 1."""
    return -10 * math.log10(float((actual - expected).square().mean()) + 1e-12)


def write_at_times(
    path: Path, frames: torch.Tensor, times: Sequence[int], encoder: str = "libx264", ticks: int = 1000, **options
) -> None:
    """A video whose frames are shown at any times, in ticks per second: what a phone or a screen recorder writes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=ticks, options={key: str(value) for key, value in options.items()})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, ticks)
        for frame, time in zip((to_rgb(frames) * 255).round().to(torch.uint8).numpy(), times, strict=True):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            image.pts, image.time_base = time, Fraction(1, ticks)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write the turning part of the display matrix of an mp4 file's only track: (x, y) -> (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    assert content.count(b"tkhd") == 1
    matrix = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)

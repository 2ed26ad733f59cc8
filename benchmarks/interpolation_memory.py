"""Peak memory of a video by its length: stream -> interpolation -> H.264 at 1280x720, 100 against 3000 frames.

    python -m benchmarks.interpolation_memory [--frames 100 3000] [--size 1280x720] [--record]

Reference: the short video. The network is a cheap stand-in that mixes two frames, with the same interface as the real
ones; frames come from a stream that draws them when read. Each length runs in a process of its own; peak resident
memory is the kernel's own mark (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import arguments, peak_mib, run_apart

PROMISE_MIB = 150


def one_video(num_frames: int, width: int, height: int) -> dict:
    """Interpolate and encode a video of `num_frames`; peak memory in MiB and seconds."""
    from dataclasses import dataclass
    from fractions import Fraction

    import av
    import torch

    from streaming_core.frames import write_video
    from streaming_core.frames.stream import FrameStream
    from streaming_core.interpolation import timeline
    from streaming_core.interpolation.stream import InterpolatedFrames, InterpolationModel

    @dataclass(frozen=True)
    class Drawn(FrameStream):
        """A bright bar that moves over a gradient."""

        num_frames: int
        height: int
        width: int
        fps: Fraction = Fraction(12)

        def __len__(self) -> int:
            return self.num_frames

        def _read(self, start: int, stop: int) -> torch.Tensor:
            gradient = torch.linspace(0, 0.7, self.width).view(1, 1, -1, 1)
            frames = gradient.repeat(stop - start, self.height, 1, 3)
            for index in range(start, stop):
                left = index * 8 % (self.width - 64)
                frames[index - start, :, left : left + 64] += 0.3
            return frames

    class Mixer(torch.nn.Module):
        def memory_used_forward(self, shape, dtype):
            return 1

        def extract_features(self, img):
            return img.mean((2, 3))

        def forward(self, img0, img1, timestep, cache):
            return torch.lerp(img0, img1, timestep)

    source = Drawn(num_frames // 2 + 1, height, width)
    line = timeline.with_count(len(source), source.fps, num_frames, output_fps=24)
    video = InterpolatedFrames(source, line, InterpolationModel(Mixer()))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        write_video(video, path, codec="h264", preset="ultrafast")
        size = path.stat().st_size
        with av.open(str(path)) as container:
            written = sum(1 for _ in container.demux(video=0)) - 1
    seconds = time.monotonic() - began
    return {"frames": written, "mib": peak_mib(), "seconds": seconds, "file_mb": size / 1e6}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs=2, default=(100, 3000))
    parser.add_argument("--size", default="1280x720", help="width x height")
    args = arguments(parser, "interpolation_memory", argv)
    if args.one:
        width, height = (int(side) for side in args.size.split("x"))
        print(json.dumps(one_video(args.one, width, height)))
        return 0
    from benchmarks.record import record, table

    results = []
    for length in args.frames:
        results.append(run_apart("interpolation_memory", "--one", length, "--size", args.size, environment={}))
        print(results[-1], flush=True)
    growth = results[1]["mib"] - results[0]["mib"]
    print(f"peak memory grows by {growth:.0f} MiB from {args.frames[0]} to {args.frames[1]} frames")
    if args.record:
        rows = [[r["frames"], f"{r['mib']:.0f}", f"{r['seconds']:.0f}", f"{r['file_mb']:.1f}"] for r in results]
        raw = args.frames[1] * 12 * pixels_of(args.size) / 2**30
        body = (
            "## Memory by video length: interpolation\n\nStream, interpolation (a stand-in that mixes two "
            f"frames) and H.264, {args.size}, one process per length. **Peak memory differs by {growth:.0f} MiB** "
            f"(promise: less than {PROMISE_MIB}); the longer video as one IMAGE would be {raw:.0f} GiB.\n\n"
            + table(["frames", "peak MiB", "seconds", "file MB"], rows)
            + "\n\nWhat limits it: a few source frames read ahead, the encoder's queue and its look-ahead."
        )
        record("interpolation_memory", "python -m benchmarks.interpolation_memory --record", body)
    return int(growth >= PROMISE_MIB or [r["frames"] for r in results] != list(args.frames))


def pixels_of(size: str) -> int:
    """Pixels of `width x height`."""
    width, height = (int(side) for side in size.split("x"))
    return width * height


if __name__ == "__main__":
    sys.exit(main())

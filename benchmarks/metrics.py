"""Speed and memory of the measures on 720p video, and how often the two cut detectors agree.

    python -m benchmarks.metrics [--record] [--frames 200 2000]

References: reading the same frames and doing nothing with them; RAFT-large alone; PySceneDetect's AdaptiveDetector.
Each length runs in a process of its own; peak resident memory is the kernel's own mark (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.memory import peak_mib, run_apart, spread_of

WIDTH, HEIGHT, FPS = 1280, 720, 24
MAWE_PAIRS = (1, 4)


def moving_frames(num_frames: int) -> Iterator:
    """A camera that wanders over a texture, with a new image every 300 frames; slices of `[F, H, W, 3]`."""
    import torch

    from benchmarks.metrics_videos import texture

    image = None
    for frame in range(num_frames):
        if frame % 300 == 0:
            image = texture(HEIGHT + 160, WIDTH + 620, frame).movedim(0, -1)
        x, y = 2 * (frame % 300), abs(frame % 160 - 80)
        yield torch.as_tensor(image[None, y : y + HEIGHT, x : x + WIDTH])


def read_only(path: str) -> dict:
    from streaming_core.frames import VideoFrames

    stream = VideoFrames.open(path)
    began = time.monotonic()
    for _ in stream.slices():
        pass
    return {"frames": len(stream), "seconds": time.monotonic() - began, "mib": peak_mib()}


def report(path: str) -> dict:
    from streaming_core.frames import VideoFrames
    from streaming_core.loop.chunk_layout import lay_out
    from streaming_core.metrics.chart import draw_report
    from streaming_core.metrics.measure import measure

    stream = VideoFrames.open(path)
    began = time.monotonic()
    found = measure(stream, lay_out(len(stream), (25, 18)))
    seconds = time.monotonic() - began
    draw_report(found)
    return {"frames": len(stream), "seconds": seconds, "mib": peak_mib(), "cuts": found.cuts.count}


def mawe(path: str) -> dict:
    """MAWE of one and of several pairs with random weights, and RAFT alone on one pair."""
    import torch

    from streaming_core.frames import VideoFrames
    from streaming_core.metrics.flow import empty_raft, raft_estimator
    from streaming_core.metrics.measure import measure_mawe

    network = empty_raft().requires_grad_(False)
    flow = raft_estimator(lambda left, right: network(left, right)[-1])
    stream, result = VideoFrames.open(path), {}
    frames = flow.working_frames(stream.read(0, 2).movedim(-1, 1))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))
        began = time.monotonic()
        flow.estimate(frames[:1], frames[1:])
        result["raft_seconds"] = time.monotonic() - began
    for pairs in MAWE_PAIRS:
        began = time.monotonic()
        measure_mawe(stream.trimmed(0, pairs + 1), flow)
        result[f"seconds_{pairs}"], result[f"mib_{pairs}"] = time.monotonic() - began, peak_mib()
    return result


def cut_rows() -> list[list[object]]:
    """One row per generated video: cuts that were put in, and what each detector finds."""
    from benchmarks.cut_videos import generated_videos
    from streaming_core.metrics.cuts import AdaptiveCuts, PySceneDetectCuts

    rows = []
    for video in generated_videos():
        found = []
        for detector in (AdaptiveCuts(), PySceneDetectCuts()):
            detector.add(video.frames)
            found.append(detector.cuts().frames)
        rows.append([video.name, *(", ".join(map(str, frames)) or "none" for frames in (video.cuts, *found))])
    return rows


def apart(task: str, path: Path) -> dict:
    """Run a task in a process of its own."""
    return run_apart("metrics", "--task", task, "--video", path)


def speed(lengths: list[int], keep: bool) -> bool:
    from benchmarks.record import record, table
    from streaming_core.frames import write_video

    rows, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            path = Path(folder) / f"{length}.mp4"
            write_video(moving_frames(length), path, FPS)
            alone, measured = apart("read_only", path), apart("report", path)
            peaks.append(measured["mib"])
            rate = length / measured["seconds"]
            ratio = measured["seconds"] / alone["seconds"]
            mib = [f"{found['mib']:.0f}" for found in (alone, measured)]
            rows.append([length, f"{rate:.1f}", f"{ratio:.1f}", *mib, f"{measured['mib'] / peaks[0]:.3f}"])
            print(rows[-1], measured["cuts"], "cuts", flush=True)
        raft = apart("mawe", path)
    print(raft, flush=True)
    few, many = MAWE_PAIRS
    per_pair = (raft[f"seconds_{many}"] - raft[f"seconds_{few}"]) / (many - few)
    spread = spread_of(peaks)
    raft_rows = [
        [few, f"{raft[f'seconds_{few}']:.1f}", f"{raft[f'mib_{few}']:.0f}"],
        [many, f"{raft[f'seconds_{many}']:.1f}", f"{raft[f'mib_{many}']:.0f}"],
    ]
    header = ["frames", "frames per second", "time / reading alone", "peak MiB, reading", "peak MiB", "ratio to first"]
    if keep:
        body = (
            f"## Measuring {WIDTH}x{HEIGHT} video\n\nVideo Report without models on H.264 files: cuts, color drift, "
            f"seams and stagnation by the weight-free flow. **Peaks differ by {spread:.1%}** (promise at most 5 %). "
            "As in the other memory tables, the allocator is set to return freed memory at once so that peaks can be "
            "compared; with default settings they vary by about 10 %.\n\n"
            f"{table(header, rows)}\n\nMAWE with RAFT-large (random weights, 12 refinements at 720x720): "
            f"{per_pair:.1f} s per pair, {per_pair / raft['raft_seconds']:.2f} times RAFT-large alone in the same "
            f"process. On a CPU nearly all of the cost of MAWE is RAFT.\n\n"
            f"{table(['pairs', 'seconds', 'peak MiB'], raft_rows)}"
        )
        record("metrics", "python -m benchmarks.metrics --record", body)
    flat = spread <= 0.05 and raft[f"mib_{many}"] <= 1.05 * raft[f"mib_{few}"]
    print(f"peak memory differs by {spread:.1%} between {lengths[0]} and {lengths[-1]} frames")
    return flat


def agreement(keep: bool) -> bool:
    from benchmarks.record import record, table

    rows = cut_rows()
    agree = sum(own == theirs for _, _, own, theirs in rows)
    print(f"{agree} of {len(rows)} videos agree")
    if keep:
        body = (
            "## Scene cuts: our detector and PySceneDetect\n\nFrames at which a new scene begins, in generated videos. "
            f"**{agree} of {len(rows)} agree** with PySceneDetect's AdaptiveDetector and its defaults, which define "
            "SCuts. Both keep scenes at least 15 frames long and ignore dissolves and fades; both count a flash of "
            "three frames as a cut.\n\n" + table(["video", "put in", "our detector", "PySceneDetect"], rows)
        )
        record("scene_cuts", "python -m benchmarks.metrics --record", body)
    return agree == len(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the results to docs/benchmarks.md")
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 2000], help="lengths of the videos")
    parser.add_argument("--task", choices=["read_only", "report", "mawe"], help=argparse.SUPPRESS)
    parser.add_argument("--video", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    import dev

    dev.ensure_environment("benchmarks.metrics")
    if args.task:
        print(json.dumps({"read_only": read_only, "report": report, "mawe": mawe}[args.task](args.video)))
        return 0
    agree, flat = agreement(args.record), speed(args.frames, args.record)
    return int(not (agree and flat))


if __name__ == "__main__":
    sys.exit(main())

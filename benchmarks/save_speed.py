"""Processor time of Stream from Video > Save Stream at 720p, against the ffmpeg program doing the same.

    python -m benchmarks.save_speed [--frames 120] [--rounds 3] [--record]

Reference: `ffmpeg` from the path, with the same encoder settings, in turns on the same file. Processor seconds of all
threads, without the start of Python; the median of the rounds. ffmpeg hands the decoded YUV on, ours goes through RGB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import run_apart
from benchmarks.record import record, table

CODECS = {
    "h264": (".mp4", ["-c:v", "libx264", "-preset", "medium", "-crf", "18", "-pix_fmt", "yuv420p"]),
    "ffv1": (".mkv", ["-c:v", "ffv1", "-level", "3", "-slices", "4", "-slicecrc", "1", "-pix_fmt", "bgr0"]),
}
PROMISE = 1.5
QUIET = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-y"]


def make_source(path: Path, num_frames: int) -> None:
    """A test card in motion with some grain, as a file that people have: 720p, H.264, tagged as BT.709."""
    pattern = f"testsrc2=s=1280x720:r=24:d={num_frames / 24},noise=alls=6:allf=t,scale=out_color_matrix=bt709"
    tags = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    encoder = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"]
    subprocess.run([*QUIET, "-f", "lavfi", "-i", pattern, *encoder, *tags, str(path)], check=True)


def program(source: Path, target: Path, options: list[str]) -> dict[str, float]:
    """What ffmpeg takes, in seconds of processor and clock."""
    began = time.monotonic()
    process = subprocess.Popen([*QUIET, "-i", str(source), *options, "-an", str(target)])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"ffmpeg ended with {process.returncode}")
    return {"cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic() - began}


def ours(source: str, target: str, codec: str) -> dict[str, float]:
    """What reading and writing takes in this process, all its threads included."""
    from streaming_core.frames import VideoFrames, write_video

    began, cpu = time.monotonic(), time.process_time()
    write_video(VideoFrames.open(source), target, codec=codec, crf=18 if codec == "h264" else None)
    return {"cpu": time.process_time() - cpu, "wall": time.monotonic() - began}


def compare(codec: str, num_frames: int, rounds: int) -> dict[str, float]:
    """Medians of both, in turns, and the sizes of the files."""
    suffix, options = CODECS[codec]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.mp4")
        make_source(source, num_frames)
        mine, theirs = Path(folder, f"ours{suffix}"), Path(folder, f"ffmpeg{suffix}")
        runs = [
            (program(source, theirs, options), run_apart("save_speed", "--child", source, mine, codec, environment={}))
            for _ in range(rounds)
        ]
        found = {
            f"{name}_{kind}": statistics.median(run[place][kind] for run in runs)
            for place, name in enumerate(("ffmpeg", "ours"))
            for kind in ("cpu", "wall")
        }
        return found | {
            "ratio": found["ours_cpu"] / found["ffmpeg_cpu"],
            "size": mine.stat().st_size / theirs.stat().st_size,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write the result into docs/benchmarks.md")
    parser.add_argument("--child", nargs=3, metavar=("SOURCE", "TARGET", "CODEC"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import json

        print(json.dumps(ours(*args.child)))
        return 0
    if shutil.which("ffmpeg") is None:
        print("the ffmpeg program is not on the path", file=sys.stderr)
        return 2
    found = {codec: compare(codec, args.frames, args.rounds) for codec in CODECS}
    header = [
        "codec",
        "ffmpeg, ms per frame",
        "ours, ms per frame",
        "ratio",
        "ratio of clock time",
        "ratio of file size",
    ]
    rows = [
        [
            codec,
            f"{1000 * one['ffmpeg_cpu'] / args.frames:.0f}",
            f"{1000 * one['ours_cpu'] / args.frames:.0f}",
            f"{one['ratio']:.2f}",
            f"{one['ours_wall'] / one['ffmpeg_wall']:.2f}",
            f"{one['size']:.3f}",
        ]
        for codec, one in found.items()
    ]
    most = max(one["ratio"] for one in found.values())
    body = (
        "## Reading and writing a video file\n\n"
        f"*Stream from Video* to *Save Stream*, 1280x720, {args.frames} frames, against the `ffmpeg` program with the "
        f"same encoder settings (h264 crf 18 medium; ffv1 in bgr0), in turns, median of {args.rounds}; processor time "
        f"of all threads. **At most {most:.2f} times ffmpeg** (promise: {PROMISE}).\n\n{table(header, rows)}\n\n"
        "What limits it: the encoder. ffmpeg hands the decoded YUV to the encoder; here it becomes RGB and YUV again, "
        "with exact rounding."
    )
    print(body)
    if args.record:
        record("save_speed", "python -m benchmarks.save_speed --record", body)
    return 0 if most <= PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())

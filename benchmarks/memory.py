"""Peak memory by the length of a video: one process per length, and the kernel's own mark of what it held (VmHWM)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed blocks go back to the system at once; otherwise the mark shows what the allocator hoards, which varies by 15 %.
"""
MOST_SPREAD = 0.05
"""What is promised of the peaks of all lengths."""


def peak_bytes() -> int:
    """The most that this process has held, since its start or since `forget_peak`."""
    mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(mark.split()[1]) * 1024


def peak_mib() -> float:
    return peak_bytes() / 2**20


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def run_apart(module: str, *arguments: object, environment: Mapping[str, str] = MALLOC) -> dict[str, Any]:
    """What `python -m benchmarks.MODULE` prints as its last line, in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return json.loads(run.stdout.splitlines()[-1])


def spread_of(values: list[float]) -> float:
    return max(values) / min(values) - 1


def make_video(sampler: Any, plan: Any) -> dict[str, float]:
    """Run the loop of Stream Sampler; frames, chunks, peak memory in MiB and seconds. Import host and pack first."""
    import torch
    from comfyui_streamingt2v.nodes.host.runs import videos

    began = time.monotonic()
    with torch.inference_mode():
        stream = videos.make_video(sampler, plan, "")
    seconds = time.monotonic() - began
    return {"frames": len(stream), "chunks": sampler.accept(plan).num_chunks, "mib": peak_mib(), "seconds": seconds}


def arguments(parser: argparse.ArgumentParser, module: str, argv: list[str] | None) -> argparse.Namespace:
    """Of a benchmark that starts itself with `--one LENGTH` for each length; torch and the host are at hand then."""
    parser.add_argument("--record", action="store_true", help="write the result to docs/benchmarks.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    import dev

    dev.ensure_environment(f"benchmarks.{module}")
    return args


@dataclass(frozen=True)
class MemoryByLength:
    """A benchmark of videos by a chunk sampler; `main` is its command.

    `one_video` makes a video of a length and returns what `make_video` returns, and how often the expensive parts ran;
    `promise` judges that. `columns`: head of a column -> name of a number, `ratio` being that of peaks to the first.
    `text`: of the recorded section, with `{spread}` and `{table}` in it.
    """

    module: str
    lengths: tuple[int, ...]
    one_video: Callable[[int], dict[str, Any]]
    promise: Callable[[dict[str, Any]], bool]
    columns: Mapping[str, str]
    text: str
    unit: str = "frames"

    def main(self, description: str, argv: list[str] | None = None) -> int:
        args = arguments(argparse.ArgumentParser(description=description), self.module, argv)
        if args.one:
            print(json.dumps(self.one_video(args.one)))
            return 0
        results = []
        for length in self.lengths:
            results.append(run_apart(self.module, "--one", length))
            print(results[-1], flush=True)
        spread = spread_of([result["mib"] for result in results])
        print(f"peak memory differs by {spread:.1%} between {self.lengths[0]} and {self.lengths[-1]} {self.unit}")
        if args.record:
            self.record(results, spread)
        return int(spread > MOST_SPREAD or not all(map(self.promise, results)))

    def record(self, results: list[dict[str, Any]], spread: float) -> None:
        from benchmarks.record import record, table

        first = results[0]["mib"]
        shown = [{**r, "ratio": f"{r['mib'] / first:.3f}", "mib": f"{r['mib']:.0f}"} for r in results]
        rows = [[result[name] for name in self.columns.values()] for result in shown]
        body = self.text.format(spread=f"{spread:.1%}", table=table(list(self.columns), rows))
        record(self.module, f"python -m benchmarks.{self.module} --record", body)

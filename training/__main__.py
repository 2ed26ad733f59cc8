"""Trains one stage, or continues with it: python -m training --stage STAGE --out DIR (--minutes N | --steps N).

The same command again continues from the last checkpoint. Ctrl-C and SIGTERM stop after the current step, with a
checkpoint. Then `python -m training.export --out DIR --stage STAGE` writes the file that the pack loads.
CAM for a video model of your own: --stage cam --base FILE --clips FOLDER. A finished file can be trained further: with
--base FILE for its VAE and UNet, and with --start FILE for the weights of the stage itself.

Stages, which build on each other in one folder:
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import dev

from .stages import STAGES, VARIETIES, defaults

if TYPE_CHECKING:
    from .task import Task

LEARNING_RATE = 1.2e-3
COMMAND = "training"


def parser_of_all() -> argparse.ArgumentParser:
    stages = "".join(f"  {stage.name:<10}{stage.about}\n" for stage in STAGES.values())
    parser = argparse.ArgumentParser(
        prog=f"python -m {COMMAND}",
        description=__doc__ + stages,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=tuple(STAGES), required=True, help="see above")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, logs and weights")
    parser.add_argument("--minutes", type=float, help=f"time limit; default {defaults('minutes')}")
    parser.add_argument("--steps", type=int, help="an exact number of steps instead, which another run can repeat")
    parser.add_argument("--size", type=int, default=96, help="pixels of the square frames (default 96)")
    parser.add_argument("--videos", choices=VARIETIES, default="narrow", help="variety of the videos (default narrow)")
    parser.add_argument("--batch", type=int, help=f"clips per step; default {defaults('batch')}")
    parser.add_argument("--frames", type=int, help=f"frames per clip, of pool per video; default {defaults('frames')}")
    parser.add_argument("--pool-videos", type=int, help=f"videos that are encoded; default {defaults('pool_videos')}")
    parser.add_argument("--overlap", type=int, help=f"how many are control frames; default {defaults('overlap')}")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help=f"learning rate (default {LEARNING_RATE})")
    parser.add_argument("--matrix-rate", type=float, default=0.0, help="train matrices with Muon at this rate")
    parser.add_argument("--seed", type=int, default=0, help="of first weights, videos and noise (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1)")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0, help="time between checkpoints (default 5)")
    parser.add_argument(
        "--base", type=Path, help="a model in SVD's or StreamingSVD's layout, for its VAE, and for cam its UNet"
    )
    parser.add_argument("--stride", type=int, help="lvdm stages: latents of a video between those of a clip")
    parser.add_argument("--rounds", type=int, default=5, help="cam: continuations that clips come from (default 5)")
    parser.add_argument(
        "--start",
        type=Path,
        help="begin with the STAGE.safetensors of another run, or with a whole file's; enhancer: with a base UNet",
    )
    parser.add_argument("--clips", type=Path, help="cam: a folder of video files, in place of generated videos")
    return parser


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of_all()
    args = parser.parse_args(argv)
    stage = STAGES[args.stage]
    if args.minutes is not None and args.steps is not None:
        parser.error("--minutes and --steps exclude each other")
    if args.size % 32:
        parser.error(f"--size is a multiple of 32, got {args.size}")
    for option in ("base", "clips", "start", "stride"):
        given = getattr(args, option)
        if given and option not in stage.takes:
            others = ", ".join(name for name, other in STAGES.items() if option in other.takes)
            parser.error(f"--{option} is for --stage {others}, not for {stage.name}")
        if isinstance(given, Path) and not given.exists():
            parser.error(f"there is no {given}")
    if args.minutes is None and args.steps is None:
        args.minutes = stage.minutes
    args.batch = args.batch or stage.batch
    args.frames = args.frames or stage.frames
    args.overlap = args.overlap or stage.overlap
    args.pool_videos = args.pool_videos or stage.pool_videos
    return args


def make_task(args: argparse.Namespace) -> Task:
    """The stage's task, from what earlier stages left in the folder."""
    make = STAGES[args.stage].make
    assert make is not None, args.stage
    return make(args)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    dev.ensure_environment(COMMAND)
    import torch

    from streaming_core.errors import StreamingError

    from .loop import Recipe, Run

    torch.set_num_threads(args.threads)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    try:
        encode = STAGES[args.stage].encode
        if encode is not None:
            written = encode(args, lambda: bool(signals))
            print(written or "stopped; nothing is written before the last video")
            return 0 if written else 3
        run = Run(make_task(args), args.out, Recipe(args.rate, args.matrix_rate, seed=args.seed))
        began, first = time.monotonic(), run.progress.step
        print(f"{args.stage}: from step {first}", flush=True)
        progress = run.train(args.steps, args.minutes, args.checkpoint_minutes, lambda: bool(signals))
    except StreamingError as error:
        print(error, file=sys.stderr)
        return 1
    made, seconds = progress.step - first, time.monotonic() - began
    each = f", {seconds / made:.2f} s each" if made else ""
    print(f"{args.stage}: step {progress.step} of {progress.steps or 'unknown'}, {made} made now{each}")
    return 0 if progress.finished else 3


if __name__ == "__main__":
    sys.exit(main())

"""python -m training --stage vae|pool|unet|cam --out DIR (--minutes N | --steps N): train one stage, or go on with it.

Stages build on each other in one folder: vae, pool, unet, cam; then `python -m training.export --out DIR`. The
same command again goes on from the last checkpoint. Ctrl-C and SIGTERM stop behind the current step, with a checkpoint.
Of StreamingModelscope: ms_unet and ms_cam, behind pool; then `python -m training.modelscope_cam --out DIR`.
Of I2VGen-XL: enhancer, behind pool; then `python -m training.export --out DIR --stage enhancer`.
CAM for a video model of your own: --stage cam --base FILE --clips FOLDER. A finished file can be trained further: with
--base FILE for its VAE and UNet, and with --start FILE for the weights of the stage itself.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import dev

DEFAULT_MINUTES = {
    "vae": 20.0,
    "unet": 75.0,
    "cam": 30.0,
    "vfi": 15.0,
    "ms_unet": 35.0,
    "ms_cam": 18.0,
    "enhancer": 25.0,
}
DEFAULT_BATCH = {"vae": 6, "unet": 3, "cam": 3, "vfi": 4, "ms_unet": 3, "ms_cam": 3, "enhancer": 3}
DEFAULT_FRAMES = {"vae": 1, "pool": 33, "unet": 8, "cam": 8, "vfi": 3, "ms_unet": 8, "ms_cam": 8, "enhancer": 8}
LEARNING_RATE = 1.2e-3
VARIETIES = ("narrow", "paced", "slow", "wide")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=("pool", *DEFAULT_MINUTES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, logs and weights")
    parser.add_argument("--minutes", type=float, help="time limit; default 20 (vae), 75 (unet), 30 (cam), 15 (vfi)")
    parser.add_argument("--steps", type=int, help="an exact number of steps instead, which another run can repeat")
    parser.add_argument("--size", type=int, default=96, help="pixels of the square frames (default 96)")
    parser.add_argument("--videos", choices=VARIETIES, default="narrow", help="variety of the videos (default narrow)")
    parser.add_argument("--batch", type=int, help="clips per step; default 6 (vae), 3 (unet, cam), 4 (vfi)")
    parser.add_argument("--frames", type=int, help="frames per clip; default 8 (unet, cam); pool: 33 per video")
    parser.add_argument("--pool-videos", type=int, default=224, help="pool: videos that are encoded (default 224)")
    parser.add_argument("--overlap", type=int, help="how many of them are control frames; default 3 (cam), 4 (ms_cam)")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help=f"learning rate (default {LEARNING_RATE})")
    parser.add_argument("--matrix-rate", type=float, default=0.0, help="train matrices with Muon at this rate")
    parser.add_argument("--seed", type=int, default=0, help="of first weights, videos and noise (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default 1)")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0, help="time between checkpoints (default 5)")
    parser.add_argument(
        "--base", type=Path, help="a model in SVD's or StreamingSVD's layout, for its VAE, and for cam its UNet"
    )
    parser.add_argument("--rounds", type=int, default=5, help="cam: continuations that clips come from (default 5)")
    parser.add_argument(
        "--start",
        type=Path,
        help="begin with the STAGE.safetensors of another run, or with a whole file's; enhancer: with a base UNet",
    )
    parser.add_argument("--clips", type=Path, help="cam: a folder of video files to train on instead of videos")
    args = parser.parse_args(argv)
    if args.minutes is not None and args.steps is not None:
        parser.error("--minutes and --steps exclude each other")
    if args.size % 32:
        parser.error(f"--size is a multiple of 32, got {args.size}")
    if args.base and args.stage in ("vae", "vfi"):
        parser.error(f"--base is not for the stage {args.stage}")
    if args.clips and args.stage != "cam":
        parser.error("--clips is for --stage cam")
    if args.start and args.stage in ("vae", "pool", "vfi"):
        parser.error(f"--start is not for the stage {args.stage}")
    for path in (args.base, args.clips, args.start):
        if path and not path.exists():
            parser.error(f"there is no {path}")
    if args.minutes is None and args.steps is None:
        args.minutes = DEFAULT_MINUTES.get(args.stage)
    args.batch = args.batch or DEFAULT_BATCH.get(args.stage)
    args.frames = args.frames or DEFAULT_FRAMES[args.stage]
    args.overlap = args.overlap or (4 if args.stage == "ms_cam" else 3)
    return args


def make_task(args: argparse.Namespace):
    """The stage's task, from what earlier stages left in the folder."""
    import torch

    from .footage import FolderSource, VideoSource
    from .layout import read_base, read_stage, stage_weights
    from .pool import read_pool
    from .svd_cam import CamTask
    from .unet import UnetTask
    from .vae import VaeTask
    from .vfi import VfiTask

    common = {
        "size": args.size,
        "batch": args.batch,
        "frames": args.frames,
        "device": torch.device(args.device),
        "seed": args.seed,
    }
    if args.stage in ("vae", "vfi"):
        common.pop("frames")
        return (VaeTask if args.stage == "vae" else VfiTask)(variety=args.videos, **common)
    start = stage_weights(args.start, args.stage) if args.start else None
    if args.stage == "unet":
        pool = read_pool(args.out, args.size, args.videos)
        return UnetTask(read_base(args.out, args.base), variety=args.videos, pool=pool, start=start, **common)
    if args.stage == "enhancer":
        from .enhancer import EnhancerTask

        pool = read_pool(args.out, args.size, args.videos)
        unet = start if start is not None else read_stage(args.out, "ms_unet")
        return EnhancerTask(read_base(args.out, args.base), unet, variety=args.videos, pool=pool, **common)
    if args.stage in ("ms_unet", "ms_cam"):
        return modelscope_task(args, {"start": start, **common})
    base = read_base(args.out, args.base, with_unet=True)
    if args.clips:
        source = FolderSource.open(args.clips, args.size, 2 * args.frames - args.overlap)
    else:
        source = VideoSource(args.size, args.videos, read_pool(args.out, args.size, args.videos))
    return CamTask(base, source, overlap=args.overlap, rounds=args.rounds, start=start, **common)


def modelscope_task(args: argparse.Namespace, common: dict):
    from .layout import read_base, read_stage
    from .modelscope import ModelscopeUnetTask
    from .modelscope_cam import ModelscopeCamTask
    from .pool import read_pool

    base, pool = read_base(args.out, args.base), read_pool(args.out, args.size, args.videos)
    if args.stage == "ms_unet":
        return ModelscopeUnetTask(base, variety=args.videos, pool=pool, **common)
    unet = read_stage(args.out, "ms_unet")
    return ModelscopeCamTask(base, unet, variety=args.videos, pool=pool, overlap=args.overlap, **common)


def encode_videos(args: argparse.Namespace, stopped) -> int:
    """The stage that trains nothing."""
    import torch

    from .configs import DEMO_SVD
    from .diffusion import Encoder
    from .layout import read_base
    from .pool import FILE, make_pool, write_pool

    base, device = read_base(args.out, args.base), torch.device(args.device)
    encoder = Encoder(base.vae(device), base.clip_vision(), DEMO_SVD.cam.unet.vector_width, device)
    pool = make_pool(encoder, args.size, args.videos, args.pool_videos, args.frames, stopped)
    if pool is None:
        return 3
    write_pool(pool, args.out, args.size, args.videos)
    print(f"{args.out / FILE}: {args.pool_videos} videos of {args.frames} frames")
    return 0


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    dev.ensure_environment("training")
    import torch

    from streaming_core.errors import StreamingError

    from .loop import Recipe, Run

    torch.set_num_threads(args.threads)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    try:
        if args.stage == "pool":
            return encode_videos(args, lambda: bool(signals))
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

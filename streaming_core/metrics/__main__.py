"""`python -m streaming_core.metrics VIDEO`: measure a video file and print the report; nothing is downloaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..atomic import atomic_write
from ..errors import FrameError, StreamingError, VideoWriteError
from ..frames import VideoFrames, to_rgb
from ..loop.chunk_layout import lay_out, parse_chunks
from .chart import draw_report
from .clip_local import load_clip
from .flow import RAFT_FILE, RAFT_FOLDER, classical_flow, load_raft
from .measure import measure
from .report import as_csv, as_json, as_text


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m streaming_core.metrics", description=__doc__)
    parser.add_argument("video", type=Path, metavar="VIDEO", help="video file to measure")
    parser.add_argument(
        "--chunks",
        default="",
        metavar="25,18",
        help="frames of the first chunk, then of the chunks after it; the last number is repeated",
    )
    parser.add_argument("--text", help="what the video should show; needs --clip")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="CLIP model in the layout of Hugging Face")
    parser.add_argument(
        "--anchor", type=Path, metavar="IMAGE", help="compare with this image instead of the first frame"
    )
    parser.add_argument(
        "--raft",
        type=Path,
        metavar="FILE",
        help=f"RAFT-large weights; default: {RAFT_FILE} in models/{RAFT_FOLDER} of the ComfyUI around this pack",
    )
    parser.add_argument("--no-raft", action="store_true", help="leave out MAWE and use the fast weight-free flow")
    parser.add_argument("--device", help="device (default: cuda if available, else cpu)")
    for kind, what in (
        ("json", "write everything as JSON"),
        ("csv", "the curves, a line per frame"),
        ("png", "the image"),
    ):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write {what}")
    return parser.parse_args(argv)


def installed_raft() -> Path | None:
    """The RAFT weights in the ComfyUI in whose custom_nodes this pack lies."""
    for place in (Path(__file__).absolute(), Path(__file__).resolve()):
        folder = place.parents[min(4, len(place.parents) - 1)] / "models" / RAFT_FOLDER
        for name in (RAFT_FILE, Path(RAFT_FILE).with_suffix(".safetensors").name):
            if (folder / name).is_file():
                return folder / name
    return None


def read_image(path: Path) -> Tensor:
    """An image file as `[1, H, W, 3]` in 0..1."""
    import numpy as np

    try:
        with Image.open(path) as image:
            return to_rgb(torch.from_numpy(np.array(image.convert("RGB")))[None])
    except (OSError, UnidentifiedImageError) as error:
        raise FrameError(f"{path} cannot be read as an image ({error}); give a PNG or JPEG file") from error


def write(path: Path, content: str | Image.Image) -> None:
    """Write a text or a PNG; the file is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            if isinstance(content, str):
                temporary.write_text(content, encoding="utf-8", newline="\n")
            else:
                content.save(temporary, format="PNG")
    except OSError as error:
        raise VideoWriteError(f"{path} cannot be written ({error}); choose another path") from error


def show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {total} frames" + "\n" * (done == total))
        sys.stderr.flush()


def run(args: argparse.Namespace) -> str:
    """Measure, write the files that were asked for, and return the text of the report."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chunk_frames = parse_chunks(args.chunks)
    stream = VideoFrames.open(args.video)
    raft = None if args.no_raft else args.raft or installed_raft()
    anchor = read_image(args.anchor) if args.anchor else None
    found = measure(
        stream,
        lay_out(len(stream), chunk_frames) if chunk_frames else None,
        flow=load_raft(raft, device) if raft else classical_flow(),
        clip=load_clip(args.clip, args.text, anchor, device) if args.clip else None,
        device=device,
        progress=show_progress,
    )
    text = as_text(found)
    for path, make in ((args.json, as_json), (args.csv, as_csv), (args.png, draw_report)):
        if path is not None:
            write(path, make(found))
    return text


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        text = run(args)
    except StreamingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("canceled\n")
        return 130
    sys.stdout.write(text)
    if args.text is not None and args.clip is None:
        sys.stderr.write("note: the text score was left out, because --text needs --clip FOLDER\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

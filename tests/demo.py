"""`python dev.py demo --out DIR [--image FILE] [--frames N]`: the StreamingSVD template on a real host, on the CPU.

Leaves `film.mp4`, `contact_sheet.png` and `frames.sha256` (one hash over all decoded frames) in DIR. There are no demo
weights yet, so it runs on a tiny file of the official key layout with random weights: the film shows that every part
works together, not what StreamingSVD looks like.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
import sys
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import dev
from streaming_core.frames import FrameStream, VideoFrames
from tests.host.harness import HostServer
from tests.host.workflow import load_workflow, set_inputs, to_prompt

TEMPLATE = dev.ROOT / "workflows" / "streamingsvd_image_to_video.json"
CHECKPOINT = "demo_streamingsvd.safetensors"
SETTINGS = {"width": 192, "height": 128, "chunk_frames": 14, "overlap_frames": 4, "anchor_frame": 3}
STEPS = {"steps": 6, "first_steps": 6}


def start_picture() -> Image.Image:
    """A drawn picture for those who bring none: a hill, a sun, a house."""
    picture = Image.new("RGB", (768, 512), (120, 180, 230))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((560, 50, 680, 170), fill=(250, 220, 90))
    draw.ellipse((-150, 300, 950, 900), fill=(70, 140, 70))
    draw.rectangle((250, 240, 420, 360), fill=(190, 80, 60))
    draw.polygon(((230, 240), (335, 160), (440, 240)), fill=(110, 60, 50))
    return picture


def contact_sheet(frames: FrameStream, columns: int = 8, width: int = 160) -> Image.Image:
    """Up to 32 evenly spaced frames with their numbers, in reading order."""
    count = min(len(frames), 4 * columns)
    numbers = [round(i * (len(frames) - 1) / max(1, count - 1)) for i in range(count)]
    height = round(width * frames.height / frames.width)
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * (height + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for position, number in enumerate(numbers):
        pixels = (frames.read(number, number + 1)[0] * 255).round().to(torch.uint8).numpy()
        left, top = position % columns * width, position // columns * (height + 14)
        sheet.paste(Image.fromarray(pixels).resize((width, height)), (left, top))
        draw.text((left + 2, top + height + 1), str(number), fill="black")
    return sheet


def frames_hash(frames: FrameStream) -> str:
    digest = hashlib.sha256()
    for part in frames.slices(16):
        digest.update((part * 255).round().to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the film and its contact sheet")
    parser.add_argument("--image", type=Path, help="start image; drawn when left out")
    parser.add_argument("--frames", type=int, default=44, help="length of the film (default 44: a clip and 3 chunks)")
    args = parser.parse_args(argv)
    if args.image and not args.image.is_file():
        parser.error(f"there is no image {args.image}")
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    from tests.tiny import write_tiny_streamingsvd

    with HostServer(pack=dev.ROOT) as server:
        print("no demo weights yet: running on a tiny file with the official key layout and random weights", flush=True)
        write_tiny_streamingsvd(server.base / "models" / "checkpoints" / CHECKPOINT)
        name = "start" + (args.image.suffix if args.image else ".png")
        if args.image:
            shutil.copy(args.image, server.base / "input" / name)
        else:
            start_picture().save(server.base / "input" / name)
        prompt = to_prompt(load_workflow(TEMPLATE), server.object_info())
        set_inputs(prompt, "LoadImage", image=name)
        set_inputs(prompt, "StreamingT2VLoadStreamingSVD", ckpt_name=CHECKPOINT)
        set_inputs(prompt, "StreamingT2VStreamingSVDChunkSampler", **STEPS)
        set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=args.frames, **SETTINGS)
        print(f"making {args.frames} frames on ComfyUI {server.version} ...", flush=True)
        report = server.run(prompt, timeout=1800)
        if report.status != "success":
            print(report.error.message if report.error else report.node_errors or report.status, file=sys.stderr)
            return 1
        [film] = [output.path for output in report.outputs if output.path.suffix == ".mp4"]
        target = args.out / "film.mp4"
        shutil.copy(film, target)

    frames = VideoFrames.open(target)
    contact_sheet(frames).save(args.out / "contact_sheet.png")
    digest = frames_hash(frames)
    (args.out / "frames.sha256").write_text(digest + "\n")
    print(f"{target}: {len(frames)} frames of {frames.width}x{frames.height} at {float(frames.fps):g} fps")
    print(f"{args.out / 'contact_sheet.png'}")
    print(f"frames {digest[:16]}, made in {time.monotonic() - began:.0f} s")
    return 0 if len(frames) == args.frames else 1


if __name__ == "__main__":
    sys.exit(main())

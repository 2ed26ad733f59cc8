"""`python dev.py demo --out DIR [--image FILE] [--frames N]`: the trained demo models on a real host, on the CPU.

From one image a video, through the pack's template `demo_image_to_video`; then, for comparison, eight frames of a video
that was not trained on, continued in three ways. Leaves in DIR

* `video.mp4` and `contact_sheet.png`;
* `side_by_side.png` and `.webp`, which moves: the video, with CAM, without CAM (every clip starts from the last frame
  before it), without the anchor;
* `video.mkv`, the same frames lossless, and `frames.sha256`, one hash over them all (an H.264 encoder with several
  threads now and then decides otherwise about a frame).
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
from torch import Tensor

import dev
from hosting.server import HostServer
from hosting.workflow import load_workflow, set_inputs, to_prompt
from streaming_core.frames import FrameStream, VideoFrames, write_video

TEMPLATE = dev.ROOT / "workflows" / "demo_image_to_video.json"
MODELS = dev.ROOT / "demo_models"
CHECKPOINT = MODELS / "models" / "checkpoints" / "demo_streamingsvd.safetensors"
INTERPOLATOR = MODELS / "models" / "frame_interpolation" / "demo_ema_vfi_t.safetensors"
START = "demo_start.png"
SIZE, SEED = 96, 33
COMPARED_VIDEO, COMPARED_FRAMES = 2000, 33
"""Which of the videos that are held out from training; a first clip and five chunks."""


def to_image(frame: Tensor) -> Image.Image:
    """`[3, H, W]` in 0..1."""
    return Image.fromarray((frame.movedim(0, -1) * 255).round().to(torch.uint8).numpy())


def contact_sheet(frames: FrameStream, columns: int = 8, width: int = 160) -> Image.Image:
    """Up to 32 evenly spaced frames with their numbers, in reading order."""
    count = min(len(frames), 4 * columns)
    numbers = [round(i * (len(frames) - 1) / max(1, count - 1)) for i in range(count)]
    height = round(width * frames.height / frames.width)
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * (height + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for position, number in enumerate(numbers):
        left, top = position % columns * width, position // columns * (height + 14)
        image = to_image(frames.read(number, number + 1)[0].movedim(-1, 0))
        sheet.paste(image.resize((width, height)), (left, top))
        draw.text((left + 2, top + height + 1), str(number), fill="black")
    return sheet


def side_by_side(videos: dict[str, Tensor], step: int = 2, width: int = 96) -> Image.Image:
    """One row per video `[F, 3, H, W]`, every `step`-th frame; a line marks where each chunk begins."""
    count = len(range(0, min(map(len, videos.values())), step))
    sheet = Image.new("RGB", (count * width, len(videos) * (width + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, frames) in enumerate(videos.items()):
        top = row * (width + 16)
        draw.text((2, top + 2), name, fill="black")
        for column in range(count):
            left = column * width
            sheet.paste(to_image(frames[column * step]).resize((width, width)), (left, top + 16))
    for frame in range(8, COMPARED_FRAMES, 5):
        left = round(frame / step * width)
        draw.line((left, 14, left, sheet.height), fill="white", width=2)
    return sheet


def moving_side_by_side(videos: dict[str, Tensor], width: int = 192) -> list[Image.Image]:
    """The videos next to each other, frame by frame, the first word or two of their names above."""
    images = []
    for frame in range(min(map(len, videos.values()))):
        image = Image.new("RGB", (len(videos) * (width + 4) - 4, width + 18), "white")
        draw = ImageDraw.Draw(image)
        for column, (name, frames) in enumerate(videos.items()):
            left = column * (width + 4)
            draw.text((left + 2, 3), name.partition(":")[0], fill="black")
            image.paste(to_image(frames[frame]).resize((width, width), Image.Resampling.BICUBIC), (left, 18))
        images.append(image)
    return images


def frames_hash(frames: FrameStream) -> str:
    digest = hashlib.sha256()
    for part in frames.slices(16):
        digest.update((part * 255).round().to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def furnish(base: Path, image: Image.Image | None = None) -> None:
    """What a user copies: the demo models into a host's folder of models, the start image into that of inputs."""
    shutil.copytree(MODELS, base, dirs_exist_ok=True, ignore=lambda folder, names: {"README.md"} & set(names))
    if image is not None:
        image.save(base / "input" / START)


def make_video_on_host(image: Image.Image | None, num_frames: int, target: Path) -> str | None:
    """The template on a server of its own; what went wrong in words, or None."""
    with HostServer(pack=dev.ROOT) as server:
        furnish(server.base, image)
        prompt = to_prompt(load_workflow(TEMPLATE), server.object_info())
        set_inputs(prompt, "StreamingT2VStreamSampler", num_frames=num_frames)
        set_inputs(prompt, "StreamingT2VSaveStream", codec="ffv1")
        print(f"making {num_frames} frames, doubled, on ComfyUI {server.version} ...", flush=True)
        report = server.run(prompt, timeout=1800)
        if report.status != "success":
            return report.error.message if report.error else str(report.node_errors or report.status)
        [video] = [output.path for output in report.outputs if output.path.suffix == ".mkv"]
        shutil.copy(video, target)
    return None


def compared() -> dict[str, Tensor]:
    """The first clip of a video that was not trained on, continued with each technique and without it."""
    from training import showcase
    from training.videos import HELD_OUT, make_video

    parts = showcase.open_parts(CHECKPOINT)
    truth = make_video(HELD_OUT + COMPARED_VIDEO, SIZE, "slow").render(0, COMPARED_FRAMES).frames
    clip = truth[: showcase.CHUNK_FRAMES]
    return {
        "the video: its first eight frames are given": truth,
        "with CAM": showcase.with_cam(parts, clip, COMPARED_FRAMES, SEED),
        "without CAM: each chunk starts from the last frame before it": showcase.without_cam(
            parts, clip, COMPARED_FRAMES, SEED
        ),
        "without the anchor: each chunk is shown the frame before it": showcase.without_anchor(
            parts, clip, COMPARED_FRAMES, SEED
        ),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the video and the contact sheets")
    parser.add_argument("--image", type=Path, help="start image; the models know only videos of the training's kind")
    parser.add_argument("--frames", type=int, default=68, help="video before doubling (default 68: a clip, 12 chunks)")
    args = parser.parse_args(argv)
    if args.image and not args.image.is_file():
        parser.error(f"there is no image {args.image}")
    if missing := [path.name for path in (CHECKPOINT, INTERPOLATOR) if not path.is_file()]:
        print(f"{MODELS} lacks {', '.join(missing)}: they are in the project's repository", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    image = Image.open(args.image).convert("RGB") if args.image else None
    target, lossless = args.out / "video.mp4", args.out / "video.mkv"
    if problem := make_video_on_host(image, args.frames, lossless):
        print(problem, file=sys.stderr)
        return 1
    frames = VideoFrames.open(lossless)
    write_video(frames, target)
    contact_sheet(frames).save(args.out / "contact_sheet.png")
    digest = frames_hash(frames)
    (args.out / "frames.sha256").write_text(digest + "\n")
    print(f"{target}: {len(frames)} frames of {frames.width}x{frames.height} at {float(frames.fps):g} fps")
    print(f"frames {digest[:16]}, made in {time.monotonic() - began:.0f} s", flush=True)
    videos = compared()
    side_by_side(videos).save(args.out / "side_by_side.png")
    first, *others = moving_side_by_side(videos)
    first.save(args.out / "side_by_side.webp", save_all=True, append_images=others, duration=160, loop=0, quality=70)
    for name in ("contact_sheet.png", "side_by_side.png", "side_by_side.webp"):
        print(args.out / name)
    return 0 if len(frames) == 2 * args.frames - 1 else 1


if __name__ == "__main__":
    sys.exit(main())

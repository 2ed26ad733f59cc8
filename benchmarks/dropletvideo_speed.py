"""The motion setting of DropletVideo, on the trained demo model: how far things move from frame to frame.

    python -m benchmarks.dropletvideo_speed [--record] [--seeds 16] [--sheet FILE.jpg]

From the first image of held-out videos a chunk at each of four settings; and videos of three chunks, whose middle one
is to be fast and the last one slow. Reference: the true videos at the same frame rates, and the same model without
cues. One model call is measured at the demo's size, and counted at the official one.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dev
from benchmarks.demo_text import balls
from benchmarks.record import record, table
from streaming_core.loop.plan import Beginning, VideoPlan
from streaming_core.loop.script import Cue, Script
from streaming_core.loop.steps import start_video, video_chunks
from streaming_core.models.dropletvideo.config import DropletConfig, latent_count
from streaming_core.models.dropletvideo.network import DropletVideo
from training.configs import DEMO_DROPLET, DEMO_MODELSCOPE
from training.demo import to_image
from training.droplet_videos import TimedClip
from training.layout import CPU, host
from training.modelscope_towers import Prompts
from training.videos import HELD_OUT, make_video

MODELS = dev.ROOT / "demo_models" / "models"
FILE, VAE_FILE = "demo_dropletvideo.safetensors", "demo_dropletvideo/demo_dropletvideo_vae.safetensors"
SIZE, FRAMES, PREFIX = 64, 17, 4
STEPS, CFG = 20, 1.0
RATES = (4.0, 8.0, 16.0, 32.0)
CUED = (16.0, 4.0, 32.0)
"""Of the three chunks."""
FIRST_SEED = HELD_OUT + 1000
"""Training measures itself on the first few held-out videos; these are others."""
SHOWN = 3
"""Videos on the sheet."""
LEAST_RATIO = 2.5
"""Promise: so many times the motion at 4 as at 32."""


@dataclass(frozen=True)
class Parts:
    """MODEL, VAE and prompts of the demo model, and the pack's sampler rooms."""

    model: Any
    vae: Any
    prompts: Prompts
    rooms: Any


def open_parts(models: Path = MODELS) -> Parts:
    """The demo files through the pack's own loader, from a folder like the host's `models`."""
    host()
    import folder_paths
    from comfyui_streamingt2v.nodes.host.dropletvideo import load, sampler

    for name in ("diffusion_models", "vae"):
        folder_paths.add_model_folder_path(name, str(models / name), is_default=True)
    loaded = load.load_dropletvideo(FILE, VAE_FILE)
    return Parts(loaded.model, loaded.vae, Prompts(DEMO_MODELSCOPE.text_encoder, CPU), sampler)


def chunk_sampler(parts: Parts, caption: str, fps: float, steps: int = STEPS, cfg: float = CFG) -> Any:
    """As *DropletVideo Chunk Sampler* makes it."""
    from comfyui_streamingt2v.nodes.dropletvideo import official_sampling

    sampler, sigmas = official_sampling(parts.model, steps)
    positive, negative = ([[parts.prompts(text), {}]] for text in (caption, ""))
    return parts.rooms.DropletChunkSampler(
        parts.model, parts.vae, (positive,), negative, sampler, sigmas, cfg, fps, prefix_frames=PREFIX
    )


def made(parts: Parts, clip: TimedClip, chunks: int = 1, script: Script = Script(), **options: Any) -> Tensor:  # noqa: B008
    """`[F, 3, H, W]` in 0..1, from the first frame of a clip at its frame rate, unless the script says other."""
    sampler = chunk_sampler(parts, clip.caption, clip.fps, **options)
    length = FRAMES + (chunks - 1) * (FRAMES - PREFIX)
    plan = VideoPlan(length, FRAMES, PREFIX, clip.video.seed % 2**32, script=script, height=SIZE, width=SIZE)
    plan = replace(plan, beginning=Beginning(image=clip.render(1).frames))
    with torch.inference_mode():
        state, first = start_video(plan, sampler)
        return torch.cat([first, *(frames for _, frames in video_chunks(state, sampler))])


def motion(frames: Tensor) -> float:
    """How many pixels the largest bright spot moves from a frame to the next, in the mean; 0 where there is none."""
    places = [place for _, place in balls(frames)]
    steps = [math.dist(a, b) for a, b in zip(places, places[1:], strict=False) if a and b]
    return mean(steps) if steps else 0.0


def with_ball(frames: Tensor) -> float:
    """Share of the frames that hold one bright spot of a ball's size."""
    share = (frames.amax(dim=1) > 0.6).float().mean(dim=(1, 2))
    one = torch.tensor([stray < 0.15 for stray, _ in balls(frames)])
    return float((one & (share > 0.03) & (share < 0.2)).float().mean())


def judged(parts: Parts, seed: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Every number of one video, and what a sheet shows of it, by its settings."""
    video = make_video(seed, SIZE)
    numbers, shown = {}, {}
    for fps in RATES:
        clip = TimedClip(video, fps, 0)
        frames, truth = made(parts, clip), clip.render(FRAMES).frames
        shown[f"{fps:g}"] = frames
        numbers |= {f"made_{fps:g}": motion(frames), f"true_{fps:g}": motion(truth), f"ball_{fps:g}": with_ball(frames)}
    clip = TimedClip(video, CUED[0], 0)
    cues = Script(motion=tuple(Cue(fps, chunk=chunk) for chunk, fps in enumerate(CUED)))
    for name, script in (("cued", cues), ("plain", Script())):
        frames = made(parts, clip, len(CUED), script)
        if script.motion:
            shown["-".join(f"{fps:g}" for fps in CUED)] = frames
        numbers[f"ball_{name}"] = with_ball(frames)
        for chunk in range(len(CUED)):
            start = FRAMES - 1 + (chunk - 1) * (FRAMES - PREFIX) if chunk else 0
            numbers[f"{name}_{chunk}"] = motion(frames[start : FRAMES + chunk * (FRAMES - PREFIX)])
    return numbers, shown


def summary(values: list[float], form: str = "{:.2f}") -> str:
    return " ± ".join(form.format(each) for each in (mean(values), stdev(values))) if len(values) > 1 else str(values)


def rows(found: list[dict[str, float]]) -> list[list[str]]:
    def column(name: str) -> list[float]:
        return [numbers[name] for numbers in found]

    lines = [
        [
            f"one chunk at {fps:g}",
            f"{summary(column(f'made_{fps:g}'))} px",
            f"true video {summary(column(f'true_{fps:g}'))} px",
            f"{mean(column(f'ball_{fps:g}')):.0%}",
        ]
        for fps in RATES
    ]
    for chunk, fps in enumerate(CUED):
        lines.append(
            [
                f"chunk {chunk} of three, with the cue {fps:g}",
                f"{summary(column(f'cued_{chunk}'))} px",
                f"without cues, at {CUED[0]:g}: {summary(column(f'plain_{chunk}'))} px",
                f"{mean(column('ball_cued')):.0%}, of all chunks",
            ]
        )
    return lines


def ratio(found: list[dict[str, float]]) -> tuple[float, int]:
    """Motion at the lowest setting over that at the highest, and of how many videos it falls all the way."""
    averages = [mean(numbers[f"made_{fps:g}"] for numbers in found) for fps in RATES]
    falling = sum(
        all(numbers[f"made_{a:g}"] > numbers[f"made_{b:g}"] for a, b in zip(RATES, RATES[1:], strict=False))
        for numbers in found
    )
    return averages[0] / averages[-1], falling


def operations(config: DropletConfig, frames: int, height: int, width: int, words: int) -> int:
    """Floating-point operations of one call for one video, counted without computing it."""
    latents = latent_count(frames), height // 8, width // 8
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = DropletVideo(config, device="meta")
        noisy = torch.zeros(1, latents[0], config.out_channels, *latents[1:])
        known = torch.zeros(1, latents[0], config.out_channels + 1, *latents[1:])
        text = torch.zeros(1, words, config.text_width)
        network(noisy, known, torch.zeros(1), text, torch.zeros(1))
    return counter.get_total_flops()


@torch.inference_mode()
def seconds_a_call(parts: Parts, repeats: int = 10) -> float:
    """Of the demo network on one thread, the best of some."""
    network, best = parts.model.model.diffusion_model.float(), math.inf
    latents, side = latent_count(FRAMES), SIZE // 8
    noisy, known = torch.randn(1, latents, 16, side, side), torch.randn(1, latents, 17, side, side)
    for _ in range(repeats):
        began = time.process_time()
        network.denoise(noisy, known, torch.tensor([500.0]), parts.prompts(""), torch.tensor([16.0]))
        best = min(best, time.process_time() - began)
    return best


def sheet(videos: list[tuple[str, Tensor]], path: Path, columns: int = FRAMES, width: int = 56) -> None:
    """One row per video with its name, `columns` evenly spaced frames of it; one chunk shows all of its frames."""
    whole = Image.new("RGB", (60 + columns * (width + 1), len(videos) * (width + 1)), "white")
    draw = ImageDraw.Draw(whole)
    for row, (name, frames) in enumerate(videos):
        draw.text((2, row * (width + 1) + width // 2 - 6), name, fill="black")
        for column in range(columns):
            frame = to_image(frames[round(column * (len(frames) - 1) / (columns - 1))])
            whole.paste(frame.resize((width, width)), (60 + column * (width + 1), row * (width + 1)))
    whole.save(path, quality=85)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--seeds", type=int, default=16, help="held-out videos (default 16)")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with diffusion_models and vae")
    parser.add_argument("--sheet", type=Path, help="image of the first videos")
    args = parser.parse_args(argv)
    dev.ensure_environment("benchmarks.dropletvideo_speed")
    torch.set_num_threads(1)
    parts = open_parts(args.models)
    found, shown = [], []
    for number in range(args.seeds):
        numbers, frames = judged(parts, FIRST_SEED + number)
        found.append(numbers)
        if number < SHOWN:
            shown += frames.items()
        print(number, {name: round(value, 2) for name, value in numbers.items()}, flush=True)
    if args.sheet is not None:
        sheet(shown, args.sheet)
    body = table(["motion a frame", "made", "reference", "frames with one ball"], rows(found))
    times, falling = ratio(found)
    call, demo = seconds_a_call(parts), operations(DEMO_DROPLET, FRAMES, SIZE, SIZE, 77)
    full = operations(DropletConfig(), 81, 384, 672, 400)
    text = "\n\n".join(
        (
            f"{args.seeds} held-out videos of {SIZE}x{SIZE} pixels, {STEPS} steps, cfg {CFG:g}, {PREFIX} shared "
            f"frames a chunk; mean ± standard deviation. **At 4 the ball moves {times:.1f} times as far from frame to "
            f"frame as at 32** (promise: at least {LEAST_RATIO:g}); the motion falls all the way from 4 to 32 in "
            f"{falling} of the {args.seeds} videos.",
            body,
            f"One model call of a chunk: {demo / 1e9:.2f} GFLOP and {call:.3f} s on one thread at the demo's size "
            f"({FRAMES} frames, 77 text tokens); {full / 1e15:.2f} PFLOP for the official network at 672x384, 81 "
            "frames and 400 tokens, counted from its layers, not run. Guidance doubles both.",
        )
    )
    print(text)
    if args.record:
        record(
            "dropletvideo-speed",
            "python -m benchmarks.dropletvideo_speed --record",
            f"## Motion setting of DropletVideo\n\n{text}",
        )


if __name__ == "__main__":
    main()

"""The trained demo enhancer on videos that it has not seen, against what it is given and against the VAE alone.

    python -m benchmarks.demo_enhancer [--record] [--videos 16] [--model demo_models/.../demo_i2vgenxl.safetensors]
    python -m benchmarks.demo_enhancer --example demo_models/input/demo_worn.mp4    # writes a worn video, and no more

Each video is shrunk, made noisy as a small video and enlarged again, then enhanced as the node Enhance Video does it:
keyframes first, then windows with randomized blending. "VAE alone" encodes and decodes without the enhancer, which
is a good part of what can be won; "the true video through the VAE" is the most that can be.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

import dev
from benchmarks.demo_models import summary
from benchmarks.record import record, table
from streaming_core.enhance.job import EnhanceRequest, plan_enhancement
from streaming_core.enhance.settings import EnhanceSettings
from streaming_core.frames import TensorFrames, write_video
from training.enhancer_wear import Wear, worn_image
from training.layout import host
from training.videos import HELD_OUT, Footage, make_video

MODELS = dev.ROOT / "demo_models" / "models"
ENCODERS = MODELS / "checkpoints" / "demo_streamingmodelscope.safetensors"
MODEL = MODELS / "diffusion_models" / "demo_i2vgenxl.safetensors"
SIZE, FRAMES, VIDEOS = 96, 18, "slow"
FIRST_SEED = HELD_OUT + 3000
EXAMPLE_SEED, EXAMPLE_FRAMES = HELD_OUT + 3200, 33
SETTINGS = EnhanceSettings(strength=0.2, steps=16, cfg=1.0, window_frames=8, overlap_frames=3)
"""As docs/training_enhancer.md recommends."""
WEARS = {
    "10 pixels, noise 0.05": Wear(10 / 12, 0.05),
    "48 pixels, noise 0.02": Wear(4.0, 0.02),
}
"""By what is worn: grid per latent of 8 pixels, and the noise."""


@dataclass(frozen=True)
class Quality:
    """How close a video comes to the true one. `psnr` in dB where something moves, `whole` in dB everywhere. `edges`:
    how steep it is where the true video is steep, 1 is as steep. `flicker`: mean change from frame to frame where
    nothing moves, in 1/255.
    """

    psnr: float
    whole: float
    edges: float
    flicker: float


def slope(frames: Tensor) -> Tensor:
    """Size of the gradient of the mean color, `[F, H - 1, W - 1]`."""
    gray = frames.mean(dim=1)
    return torch.hypot(gray[:, :-1, 1:] - gray[:, :-1, :-1], gray[:, 1:, :-1] - gray[:, :-1, :-1])


def quality(made: Tensor, truth: Footage) -> Quality:
    """Of a video `[F, 3, H, W]` in 0..1."""
    error = (truth.moving * (made - truth.frames) ** 2).sum() / (3 * truth.moving.sum())
    steep = slope(truth.frames) * truth.moving[:, 0, :-1, :-1].ceil()
    still = 1 - F.max_pool2d(torch.maximum(truth.moving[1:], truth.moving[:-1]), 17, 1, 8)
    change = still * (made[1:] - made[:-1]).abs()
    return Quality(
        float(-10 * error.log10()),
        float(-10 * (made - truth.frames).square().mean().log10()),
        float((steep * slope(made)).sum() / (steep * slope(truth.frames)).sum()),
        float(255 * change.sum() / (3 * still.sum())),
    )


@cache
def opened(model: Path):
    """The enhancer with the encoders and the VAE of the demo StreamingModelscope, through the pack's loaders."""
    host()
    import folder_paths
    from comfyui_streamingt2v.nodes.host.enhance import enhancer
    from comfyui_streamingt2v.nodes.host.enhance import load as load_enhancer
    from comfyui_streamingt2v.nodes.host.modelscope import load as load_modelscope

    folder_paths.add_model_folder_path("diffusion_models", str(model.resolve().parent))
    folder_paths.add_model_folder_path("checkpoints", str(ENCODERS.parent))
    encoders = load_modelscope.load_streamingmodelscope(ENCODERS.name)
    return enhancer.Enhancer(load_enhancer.load_enhancer(model.name), encoders.clip, encoders.clip_vision, encoders.vae)


def enhanced(model: Path, video: Tensor, settings: EnhanceSettings = SETTINGS) -> Tensor:
    """`[F, 3, H, W]` in 0..1, as Enhance Video makes it."""
    enhancer = opened(model)
    from comfyui_streamingt2v.nodes.host.enhance.enhancer import enhance

    stream = TensorFrames(video.movedim(1, -1), 6)
    job = plan_enhancement(EnhanceRequest(stream, video.shape[-1], video.shape[-2], "inside", settings))
    with torch.inference_mode():
        return enhance(enhancer, job).images().movedim(-1, 1)


@torch.inference_mode()
def through_vae(model: Path, video: Tensor) -> Tensor:
    vae = opened(model).vae
    return vae.decode(vae.encode(video.movedim(1, -1)))[..., :3].movedim(-1, 1).clamp(0, 1)


def worn_video(seed: int, wear: Wear, frames: int = FRAMES) -> tuple[Tensor, Footage]:
    """A video `[F, 3, H, W]` as it is given to the enhancer, and the true one."""
    truth = make_video(seed, SIZE, VIDEOS).render(0, frames)
    return worn_image(truth.frames, wear, torch.Generator().manual_seed(seed % 2**32)), truth


def judged(model: Path, seed: int) -> dict[str, dict[str, Quality]]:
    """Every number of one video, by wear and by what was done to it."""
    torch.set_num_threads(1)
    found = {}
    most = through_vae(model, make_video(seed, SIZE, VIDEOS).render(0, FRAMES).frames)
    for name, wear in WEARS.items():
        given, truth = worn_video(seed, wear)
        videos = {
            "given": given,
            "vae": through_vae(model, given),
            "enhanced": enhanced(model, given, replace(SETTINGS, seed=seed % 2**32)),
            "most": most,
        }
        found[name] = {column: quality(video, truth) for column, video in videos.items()}
    return found


def rows(found: list[dict[str, dict[str, Quality]]]) -> Iterator[list[str]]:
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        "psnr": ("PSNR where the ball is, dB", "{:.1f}".format),
        "whole": ("PSNR of the whole frame, dB", "{:.1f}".format),
        "edges": ("steepness of its edges", "{:.2f}".format),
        "flicker": ("flicker of the background, /255", "{:.1f}".format),
    }
    for wear in WEARS:
        for field, (label, form) in forms.items():
            columns = {
                column: [getattr(numbers[wear][column], field) for numbers in found] for column in found[0][wear]
            }
            yield [f"{wear}: {label}", *(summary(values, form) for values in columns.values())]


def better_videos(found: list[dict[str, dict[str, Quality]]], wear: str, than: str) -> str:
    won = [numbers[wear]["enhanced"].psnr - numbers[wear][than].psnr for numbers in found]
    return f"{sum(gain > 0 for gain in won)} of {len(won)} ({mean(won):+.1f} dB)"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--videos", type=int, default=16, help="held-out videos (default 16)")
    parser.add_argument("--workers", type=int, default=1, help="videos that are judged side by side (default 1)")
    parser.add_argument("--model", type=Path, default=MODEL, help="a file that was trained here")
    parser.add_argument("--example", type=Path, help="write a worn video to this video file instead")
    args = parser.parse_args(argv)
    if args.example:
        video, _ = worn_video(EXAMPLE_SEED, next(iter(WEARS.values())), EXAMPLE_FRAMES)
        write_video(TensorFrames(video.movedim(1, -1), 6), args.example)
        return
    seeds = range(FIRST_SEED, FIRST_SEED + args.videos)
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as workers:
        found = []
        for numbers in workers.map(partial(judged, args.model), seeds):
            found.append(numbers)
            print(len(found), {wear: {c: round(q.psnr, 1) for c, q in by.items()} for wear, by in numbers.items()})
    enlarged = f"{FRAMES} frames of {SIZE} x {SIZE}, enlarged from"
    header = [enlarged, "input", "VAE alone", "enhanced", "the true video through the VAE"]
    wins = "; ".join(
        f"{wear}: {better_videos(found, wear, 'given')} against the input, "
        f"{better_videos(found, wear, 'vae')} against the VAE alone"
        for wear in WEARS
    )
    body = f"{table(header, list(rows(found)))}\n\nVideos with a higher PSNR when enhanced: {wins}."
    print(body)
    if args.record:
        record(
            "demo-enhancer",
            "python -m benchmarks.demo_enhancer --record",
            f"## Demo enhancer\n\n{args.videos} held-out videos, mean ± standard deviation; strength "
            f"{SETTINGS.strength:g}, {SETTINGS.steps} steps, guidance {SETTINGS.guidance:g}, windows of "
            f"{SETTINGS.window_frames} frames with {SETTINGS.overlap_frames} shared. "
            f"docs/training_enhancer.md explains what limits it.\n\n{body}",
        )


if __name__ == "__main__":
    main()

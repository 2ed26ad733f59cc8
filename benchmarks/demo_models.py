"""The trained demo models on videos that they have not seen, against doing without each technique.

    python -m benchmarks.demo_models [--record] [--seeds 16] [--model demo_models/demo_streamingsvd.safetensors]

Reference: the same file with CAM at strength 0, with each clip started from the last frame of the one before instead,
without the anchor (each chunk is shown the frame before it), and with windows joined at fixed handovers, not random.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

import dev
from benchmarks.record import record, table
from streaming_core.frames import TensorFrames
from streaming_core.loop.chunk_layout import lay_out
from streaming_core.metrics.measure import measure
from streaming_core.schedules.svd import karras_sigmas
from streaming_core.windows.handovers import Handovers, Offsets, SeededHandovers
from streaming_core.windows.plan import Windows, overlaps, plan_windows
from training import showcase
from training.showcase import CHUNK_FRAMES, OVERLAP_FRAMES, Parts
from training.videos import HELD_OUT, PACES, Video, make_video

MODEL = dev.ROOT / "demo_models" / "models" / "checkpoints" / "demo_streamingsvd.safetensors"
SIZE = 96
VIDEOS = "slow"
MEAN_BUCKET = round(127 * mean(PACES[VIDEOS]))
"""The best value for image-to-video where the speed of a video is not known."""
FIRST_SEED = HELD_OUT + 1000
"""Training measures itself on the first few held-out videos; these are others."""
NEW_FRAMES = CHUNK_FRAMES - OVERLAP_FRAMES
CHUNKS = 5
LOST_DEGREES = 90.0
"""What a frame without any colored sprite counts: as far off as a hue drawn by chance is in the mean."""
ENHANCED_FRAMES, ENHANCE_SIGMA, ENHANCE_STEPS = 23, 4.0, 8
"""Of the windowed pass: a video is noised to this level and denoised in windows."""


def moving_error(made: Tensor, truth: Tensor, moving: Tensor) -> float:
    """Mean squared error of `[F, 3, H, W]` in 0..1 where the true sprite is."""
    return float((moving * (made - truth) ** 2).sum() / (3 * moving.sum()))


def hues(frames: Tensor) -> list[float | None]:
    """Hue of the saturated, bright pixels of each frame in degrees; None where fewer than 0.4 % are so."""
    top, low = frames.amax(dim=1), frames.amin(dim=1)
    colored = (top > 0.55) & (top - low > 0.4 * top)
    found: list[float | None] = []
    for frame, mask in zip(frames, colored, strict=True):
        if mask.float().mean() < 0.004:
            found.append(None)
            continue
        angles = torch.tensor([2 * math.pi * colorsys.rgb_to_hsv(*rgb)[0] for rgb in frame[:, mask].T.tolist()])
        found.append(math.degrees(math.atan2(float(angles.sin().mean()), float(angles.cos().mean()))) % 360)
    return found


def mean_hue(frames: Tensor) -> float | None:
    """Of the frames with a colored sprite, in degrees; None where there are none."""
    angles = torch.tensor([math.radians(hue) for hue in hues(frames) if hue is not None])
    return (
        math.degrees(math.atan2(float(angles.sin().mean()), float(angles.cos().mean()))) % 360 if len(angles) else None
    )


def background(frames: Tensor) -> Tensor:
    """`[3]`: the median color of `[F, 3, H, W]`, which no sprite is large enough to change."""
    return frames.movedim(1, 0).flatten(1).median(dim=1).values


def hue_distance(hue: float | None, reference: float) -> float:
    """Degrees between two hues, 0 to 180."""
    return LOST_DEGREES if hue is None else abs((hue - reference + 180) % 360 - 180)


def hue_errors(video: Tensor, reference: float) -> tuple[float, float]:
    """Mean distance of a video's hues to a reference in degrees, and the share of frames without a colored sprite."""
    found = hues(video)
    return mean(hue_distance(hue, reference) for hue in found), mean(hue is None for hue in found)


@dataclass(frozen=True)
class MiddleHandovers:
    """One handover in the middle of each overlap, at every step."""

    def offsets(self, windows: Windows, step: int) -> Offsets:
        return tuple(frames // 2 for frames in overlaps(windows))


def enhanced(parts: Parts, video: Video, handovers: Handovers, seed: int) -> Tensor:
    """A video, noised and denoised again in windows by the video UNet; every window starts from its own first frame."""
    import comfy.sample
    from comfyui_streamingt2v.nodes.host import pixels
    from comfyui_streamingt2v.nodes.host.svd import sampler as svd
    from comfyui_streamingt2v.nodes.host.windows import blending
    from comfyui_streamingt2v.nodes.host.windows.conditions import with_window_conditions

    frames = video.render(0, ENHANCED_FRAMES).frames
    windows = plan_windows(ENHANCED_FRAMES, CHUNK_FRAMES, OVERLAP_FRAMES)
    motion = parts.sampler.motion
    conds = []
    for window in windows:
        first = frames[window.start : window.start + 1]
        embedding = svd.embed_image(parts.clip_vision, first)
        conds.append(svd.image_conditioning(parts.vae, first, embedding, torch.zeros_like(first), motion))
    positive = with_window_conditions(conds[0][0], [each for each, _ in conds])
    latents = parts.vae.encode(pixels.core_to_images(frames))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    sigmas = karras_sigmas(ENHANCE_STEPS, sigma_max=ENHANCE_SIGMA)
    model = blending.with_blending(parts.model, CHUNK_FRAMES, OVERLAP_FRAMES, handovers)
    made = comfy.sample.sample_custom(
        model, noise, 1.0, parts.sampler.sampling.sampler, sigmas, positive, conds[0][1], latents, disable_pbar=True
    )
    return parts.sampler.decode(made, 0)


def seam_score(frames: Tensor) -> float:
    """Mean over the places where `MiddleHandovers` joins windows."""
    windows = plan_windows(len(frames), CHUNK_FRAMES, OVERLAP_FRAMES)
    handovers = MiddleHandovers().offsets(windows, 0)
    joins = [window.start + offset for window, offset in zip(windows[1:], handovers, strict=True)]
    lengths = tuple(b - a for a, b in zip([0, *joins], [*joins, len(frames)], strict=True))
    found = measure(TensorFrames(frames.movedim(1, -1), fps=6), lay_out(len(frames), lengths))
    return mean(join.score for join in found.seams.joins)


def judged(model: Path, seed: int) -> dict[str, float]:
    """Every number of one video."""
    torch.set_num_threads(1)  # videos are judged side by side
    parts = opened(model)
    video = make_video(seed, SIZE, VIDEOS)
    truth = video.render(0, CHUNK_FRAMES + NEW_FRAMES)
    begun, new = truth.frames[:CHUNK_FRAMES], slice(CHUNK_FRAMES, None)

    def chained(motion_bucket_id: int) -> Tensor:
        faster = showcase.at_speed(parts, motion_bucket_id)
        return showcase.without_cam(faster, begun, len(truth.frames), seed % 2**32)

    bucket = parts.sampler.motion.motion_bucket_id
    continued = {
        "cam": showcase.with_cam(parts, begun, len(truth.frames), seed % 2**32),
        "off": showcase.with_cam(parts, begun, len(truth.frames), seed % 2**32, strength=0.0),
        "alike": chained(bucket),
        "chained": chained(MEAN_BUCKET),
        "told": chained(video.motion_bucket_id),
        "frozen": begun[-1:].expand(len(truth.frames), -1, -1, -1),
    }
    errors = {
        f"error_{name}": moving_error(frames[new], truth.frames[new], truth.moving[new])
        for name, frames in continued.items()
    }
    length = CHUNK_FRAMES + CHUNKS * NEW_FRAMES
    clip = showcase.first_chunk(parts, video.render(0, 1).frames, seed % 2**32)
    reference = mean_hue(clip)
    if reference is None:
        raise ValueError(f"the first clip of video {seed} has lost its sprite; train the video UNet further")
    colors = {}
    for name, make in (("anchor", showcase.with_cam), ("no_anchor", showcase.without_anchor)):
        frames = make(parts, clip, length, seed % 2**32)
        colors[f"hue_{name}"], colors[f"lost_{name}"] = hue_errors(frames[CHUNK_FRAMES:], reference)
        colors[f"background_{name}"] = float((background(frames[-NEW_FRAMES:]) - background(clip)).norm())
        if name == "anchor":
            layout = lay_out(length, (CHUNK_FRAMES, NEW_FRAMES))
            kept = measure(TensorFrames(frames.movedim(1, -1), fps=6), layout).stagnation.kept
    seams = {
        "seam_randomized": seam_score(enhanced(parts, video, SeededHandovers(seed % 2**32), seed % 2**32)),
        "seam_fixed": seam_score(enhanced(parts, video, MiddleHandovers(), seed % 2**32)),
    }
    return {**errors, **colors, "flow_kept": kept or 0.0, **seams}


@cache
def opened(model: Path) -> Parts:
    return showcase.open_parts(model)


def summary(values: list[float], form: Callable[[float], str]) -> str:
    return f"{form(mean(values))} ± {form(stdev(values))}" if len(values) > 1 else form(values[0])


def rows(found: list[dict[str, float]]) -> Iterator[list[str]]:
    def column(name: str) -> list[float]:
        return [numbers[name] for numbers in found]

    thousandths, degrees, percent, ratio = "{:.4f}".format, "{:.1f}°".format, "{:.0%}".format, "{:.2f}".format
    names = ("cam", "off", "alike", "chained", "told", "frozen")
    cam, off, alike, chained, known, frozen = (mean(column(f"error_{name}")) for name in names)
    yield [
        "squared error where the sprite is, first continuation against the true video",
        summary(column("error_cam"), thousandths),
        f"strength 0 {summary(column('error_off'), thousandths)} ({cam / off - 1:+.0%} with CAM); "
        f"last-frame chaining {summary(column('error_alike'), thousandths)} ({cam / alike - 1:+.0%}), "
        f"at the videos' mean speed {summary(column('error_chained'), thousandths)} ({cam / chained - 1:+.0%}), "
        f"at the video's true speed {summary(column('error_told'), thousandths)} ({cam / known - 1:+.0%}); "
        f"frozen image {summary(column('error_frozen'), thousandths)} ({cam / frozen - 1:+.0%})",
    ]
    yield [
        f"hue of the sprite over {CHUNKS} chunks, distance to the first chunk's",
        summary(column("hue_anchor"), degrees),
        f"without the anchor {summary(column('hue_no_anchor'), degrees)}",
    ]
    yield [
        f"color of the background in chunk {CHUNKS}, distance to the first chunk's (of 1)",
        summary(column("background_anchor"), thousandths),
        f"without the anchor {summary(column('background_no_anchor'), thousandths)}",
    ]
    yield [
        "frames without a colored sprite",
        summary(column("lost_anchor"), percent),
        f"without the anchor {summary(column('lost_no_anchor'), percent)}",
    ]
    yield [
        f"mean flow of chunk {CHUNKS} / of the first chunk",
        summary(column("flow_kept"), ratio),
        "1 in the true video",
    ]
    yield [
        f"seam score of a windowed pass ({CHUNK_FRAMES} frames, overlap {OVERLAP_FRAMES})",
        summary(column("seam_randomized"), ratio),
        f"fixed handovers {summary(column('seam_fixed'), ratio)}",
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--seeds", type=int, default=16, help="held-out videos (default 16)")
    parser.add_argument("--model", type=Path, default=MODEL, help="a file that was trained here")
    args = parser.parse_args(argv)
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as workers:
        found = []
        for numbers in workers.map(partial(judged, args.model), seeds):
            found.append(numbers)
            print(len(found), {name: round(value, 4) for name, value in numbers.items()}, flush=True)
    body = table(["measure", "with", "without"], list(rows(found)))
    print(body)
    if args.record:
        record(
            "demo-models",
            "python -m benchmarks.demo_models --record",
            f"## Demo models\n\n{args.seeds} held-out videos, mean ± standard deviation. "
            f"docs/training.md explains what limits them.\n\n{body}",
        )


if __name__ == "__main__":
    main()

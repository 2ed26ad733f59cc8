"""Stage pool: the videos of the first seeds as latents, made once, so that later stages need not encode them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from streaming_core.atomic import atomic_write
from streaming_core.errors import SettingsError

from .diffusion import Encoder
from .footage import VideoPool
from .videos import Variety, make_video

FILE = "pool.safetensors"
SLICE = 8
"""Frames that are encoded at a time."""


def make_pool(
    encoder: Encoder,
    size: int,
    variety: Variety,
    num_videos: int,
    num_frames: int,
    stopped: Callable[[], bool] = lambda: False,
) -> VideoPool | None:
    """Frames 0 to `num_frames` of the videos of seeds 0 to `num_videos`; None where it was stopped before the end.

    Half precision is kept: what is lost is a thousandth of the noise that the finest level adds.
    """
    videos = []
    for seed in range(num_videos):
        if stopped():
            return None
        video = make_video(seed, size, variety)
        slices = [
            encoder.encode(video.render(start, min(start + SLICE, num_frames)).frames)
            for start in range(0, num_frames, SLICE)
        ]
        videos.append(torch.cat(slices).half().cpu())
    return VideoPool(torch.stack(videos))


def write_pool(pool: VideoPool, folder: Path, size: int, variety: Variety) -> None:
    about = {"videos": json.dumps({"size": size, "variety": variety})}
    with atomic_write(folder / FILE) as temporary:
        save_file({"latents": pool.latents}, temporary, about)


def read_pool(folder: Path, size: int, variety: Variety) -> VideoPool:
    """Raises `SettingsError` where there is none, or one of other videos."""
    path = folder / FILE
    if not path.is_file():
        raise SettingsError(f"{path} is not there yet; run python -m training --stage pool --out {folder} first")
    with safe_open(path, "pt") as file:
        about, latents = json.loads(file.metadata()["videos"]), file.get_tensor("latents")
    if about != {"size": size, "variety": variety}:
        raise SettingsError(
            f"{path} holds {about['variety']} videos of {about['size']} pixels, not {variety} ones of {size}; "
            "make another with --stage pool, or use another folder"
        )
    return VideoPool(latents)

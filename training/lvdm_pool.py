"""Stage lvdm_pool: the first videos as latents of LVDM's autoencoder, and where something moves in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from streaming_core.atomic import atomic_write
from streaming_core.errors import SettingsError
from streaming_core.models.lvdm.autoencoder import VideoAutoencoder
from streaming_core.models.lvdm.config import LATENT_SCALES

from .configs import DEMO_LVDM_AE
from .footage import pick
from .layout import read_stage
from .videos import Footage, Variety, make_video

FILE = "lvdm_pool.safetensors"


@dataclass(frozen=True)
class LatentPool:
    """Videos as unit-scale `latents` `[videos, C, T, h, w]`, and how much moves, `[videos, 1, T, h, w]` in 0..1."""

    latents: Tensor
    moving: Tensor

    def draw(self, generator: torch.Generator, count: int, frames: int, stride: int) -> LatentPool:
        """`count` stretches of `frames` latents, `stride` apart, from anywhere in the videos."""
        last = self.latents.shape[2] - (frames - 1) * stride
        latents, moving = [], []
        for _ in range(count):
            video, start = pick(generator, len(self.latents)), pick(generator, last)
            times = slice(start, start + (frames - 1) * stride + 1, stride)
            latents.append(self.latents[video, :, times].float())
            moving.append(self.moving[video, :, times].float())
        return LatentPool(torch.stack(latents), torch.stack(moving))


def trained_autoencoder(folder: Path) -> nn.Module:
    """What stage lvdm_ae left in the folder; raises `SettingsError` where it has not."""
    network = VideoAutoencoder(DEMO_LVDM_AE)
    network.load_state_dict(read_stage(folder, "lvdm_ae"))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def encoded(autoencoder: nn.Module, footage: Footage) -> LatentPool:
    """One video as a pool of its own."""
    video = footage.frames.transpose(0, 1)[None] * 2 - 1
    latents = LATENT_SCALES["sky"].to_model(autoencoder.encode(video))
    moving = F.adaptive_max_pool3d(footage.moving.transpose(0, 1)[None], latents.shape[-3:])
    return LatentPool(latents, moving)


def make_pool(
    autoencoder: nn.Module,
    size: int,
    variety: Variety,
    num_videos: int,
    num_frames: int,
    stopped: Callable[[], bool] = lambda: False,
) -> LatentPool | None:
    """Frames 0 to `num_frames` of the videos of the first seeds, in half precision; None where it was stopped."""
    latents, moving = [], []
    for seed in range(num_videos):
        if stopped():
            return None
        one = encoded(autoencoder, make_video(seed, size, variety).render(0, num_frames))
        latents.append(one.latents.half())
        moving.append(one.moving.half())
    return LatentPool(torch.cat(latents), torch.cat(moving))


def write_pool(pool: LatentPool, folder: Path, size: int, variety: Variety) -> None:
    about = {"videos": json.dumps({"size": size, "variety": variety})}
    with atomic_write(folder / FILE) as temporary:
        save_file({"latents": pool.latents, "moving": pool.moving}, temporary, about)


def read_pool(folder: Path, size: int, variety: Variety) -> LatentPool:
    """Raises `SettingsError` where there is none, or one of other videos."""
    path = folder / FILE
    if not path.is_file():
        raise SettingsError(f"{path} is not there yet; run python -m training --stage lvdm_pool --out {folder} first")
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["videos"])
        pool = LatentPool(file.get_tensor("latents"), file.get_tensor("moving"))
    if about != {"size": size, "variety": variety}:
        raise SettingsError(
            f"{path} holds {about['variety']} videos of {about['size']} pixels, not {variety} ones of {size}; "
            "make another with --stage lvdm_pool, or use another folder"
        )
    return pool

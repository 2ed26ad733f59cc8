"""Clips for stage droplet as latents with what is known of them, encoded once: the VAE costs more than a step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from streaming_core.atomic import atomic_write
from streaming_core.errors import SettingsError
from streaming_core.models.dropletvideo.conditioning import KnownFrames, mask_channel, painted, place_frames
from streaming_core.models.dropletvideo.vae import CausalVae

from .droplet_videos import TimedClip, draw_timed
from .loop import step_generator
from .videos import Variety, make_video

FILE = "droplet_pool.safetensors"
TOGETHER = 8
"""Clips that are encoded in one call."""
KNOWN = ((1, 0), (4, 0), (1, 1))
KNOWN_SHARES = (0.45, 0.45, 0.1)
"""How many frames are known at the start and at the end of a clip, and how often that is so."""


@dataclass(frozen=True)
class DropletClips:
    """N clips, on the CPU.

    latents, inpaint: `[N, k + 1, 16, h, w]` and `[N, k + 1, 17, h, w]` float16, both times the VAE's scaling factor.
    moving: how much of each latent moves, `[N, k + 1, 1, h, w]` uint8, 0 to 255.
    numbers: `[N, 3]` float64: seed of the video, frame rate, own frame that the clip begins with.
    """

    latents: Tensor
    inpaint: Tensor
    moving: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def timed(self, index: int, size: int, variety: Variety) -> TimedClip:
        seed, fps, start = self.numbers[index].tolist()
        return TimedClip(make_video(int(seed), size, variety), fps, int(start))


def known_of(frames: Tensor, start: int, end: int) -> KnownFrames:
    """A clip `[F, 3, H, W]` in 0..1 of which so many frames at either end are known."""
    return place_frames(len(frames), *frames.shape[-2:], frames[:start], frames[-end:] if end else None)


@torch.no_grad()
def encoded(
    vae: CausalVae, clips: list[TimedClip], known: list[tuple[int, int]], frames: int, device: torch.device
) -> DropletClips:
    """Clips of `frames` frames and what of them is known, through the posterior's mode, as when sampling."""
    footage = [clip.render(frames) for clip in clips]
    whole = torch.stack([each.frames.transpose(0, 1) for each in footage]) * 2 - 1
    given = [known_of(each.frames, *which) for each, which in zip(footage, known, strict=True)]
    latents = vae.encode(whole.to(device)).cpu()
    seen = vae.encode(torch.cat([painted(each) for each in given]).to(device)).cpu()
    masks = torch.cat([mask_channel(each.missing, *latents.shape[2:]) for each in given])
    factor = vae.config.scaling_factor
    moving = torch.stack([latent_motion(each.moving, latents.shape[2:]) for each in footage])
    numbers = [(clip.video.seed, clip.fps, clip.start) for clip in clips]
    return DropletClips(
        (factor * latents).transpose(1, 2).half(),
        (factor * torch.cat([masks, seen], dim=1)).transpose(1, 2).half(),
        (255 * moving).round().to(torch.uint8),
        torch.tensor(numbers, dtype=torch.float64),
    )


def latent_motion(moving: Tensor, shape: torch.Size) -> Tensor:
    """`[F, 1, H, W]` of pixels to `[k + 1, 1, h, w]`: a latent moves as much as the most moving of its pixels."""
    count, height, width = shape
    video = moving.transpose(0, 1)
    rest = F.adaptive_max_pool3d(video[:, 1:], (count - 1, height, width))
    return torch.cat([F.adaptive_max_pool3d(video[:, :1], (1, height, width)), rest], dim=1).transpose(0, 1)


def make_clips(
    vae: CausalVae, size: int, variety: Variety, count: int, frames: int, device: torch.device
) -> DropletClips:
    """The first `count` clips, a whole number of `TOGETHER`; always the same ones."""
    shares, parts = torch.tensor(KNOWN_SHARES), []
    for number in range(max(1, count // TOGETHER)):
        generator = step_generator(0, FILE, number)
        clips = [draw_timed(generator, size, variety) for _ in range(TOGETHER)]
        kinds = torch.multinomial(shares, TOGETHER, replacement=True, generator=generator).tolist()
        parts.append(encoded(vae, clips, [KNOWN[kind] for kind in kinds], frames, device))
    return DropletClips(*(torch.cat([getattr(part, name) for part in parts]) for name in NAMES))


NAMES = ("latents", "inpaint", "moving", "numbers")


def read_or_make_clips(folder: Path, vae: CausalVae, about: dict[str, Any], device: torch.device) -> DropletClips:
    """Those of a training folder, made where it has none.

    about: `size`, `variety`, `count` and `frames` of `make_clips`.

    Raises:
        SettingsError: the folder's clips are other ones.
    """
    path = folder / FILE
    if not path.is_file():
        print(f"encoding {about['count']} clips ...", flush=True)
        clips = make_clips(vae, device=device, **about)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            tensors = {name: getattr(clips, name).contiguous() for name in NAMES}
            save_file(tensors, temporary, {"clips": json.dumps(about)})
        return clips
    with safe_open(path, "pt") as file:
        found = json.loads(file.metadata()["clips"])
        if found != about:
            raise SettingsError(f"{path} holds clips of {found}, not of {about}; use another folder, or remove it")
        return DropletClips(*(file.get_tensor(name) for name in NAMES))

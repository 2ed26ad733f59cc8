"""DropletVideo from tiny weights in this process. Import it after `import_host()` and `import_pack()`."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch
from comfyui_streamingt2v.nodes import dropletvideo as nodes
from comfyui_streamingt2v.nodes.host import handed_out
from comfyui_streamingt2v.nodes.host.dropletvideo.sampler import DropletChunkSampler
from comfyui_streamingt2v.nodes.host.runs import handed_out as run_handed_out
from comfyui_streamingt2v.nodes.host.runs import reroll, videos
from comfyui_streamingt2v.streaming_core.loop.plan import VideoPlan
from torch import Tensor

from tiny_models.dropletvideo import TINY, WEIGHTS

WIDTH, HEIGHT = 48, 32


def load(folder: Path, weights: str = WEIGHTS) -> tuple:
    """MODEL and VAE from *Load DropletVideo*, as if both of the host's folders were there."""
    with pytest.MonkeyPatch.context() as patch:
        for key in ("diffusion_models", "vae"):
            endings = folder_paths.folder_names_and_paths[key][1]
            patch.setitem(folder_paths.folder_names_and_paths, key, ([str(folder)], endings))
        return nodes.LoadDropletVideo.execute(f"transformer/{weights}", f"vae/{WEIGHTS}").result


def keep_runs_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for module in (videos, reroll, handed_out, run_handed_out):
        if hasattr(module, "runs_root"):
            patch.setattr(module, "runs_root", lambda: folder)


def images(count: int, seed: int = 4, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> list:
    return [[torch.randn(1, 10, TINY.text_width, generator=torch.Generator().manual_seed(seed)), {}]]


def chunk_sampler(loaded: tuple, **options) -> DropletChunkSampler:
    """From its node."""
    given = {
        "positive": text(1),
        "negative": text(2),
        "steps": 1,
        "cfg": 3.0,
        "motion_fps": 8.0,
        "prefix_frames": "4",
        "reference_noise": 0.0,
        "quality": "",
        **options,
    }
    return nodes.DropletVideoChunkSampler.execute(*loaded, **given).result[0]


def plan(num_frames: int, chunk_frames: int = 9, **options) -> VideoPlan:
    given = {"overlap_frames": 1, "width": WIDTH, "height": HEIGHT, "fit": "crop", "seed": 5, "anchor_frame": 0}
    given |= {"start_image": images(1), **options}
    return videos.plan_video(num_frames=num_frames, chunk_frames=chunk_frames, **given)


def make(sampler, num_frames: int, name: str = "mine", chunk_frames: int = 9, **options) -> Tensor:
    video = videos.make_video(sampler, plan(num_frames, chunk_frames, **options), name)
    return video.read(0, len(video))

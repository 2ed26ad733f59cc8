"""Stage 2: the films of the first seeds as latents, made once, so that later stages need not encode what they draw."""

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
from .films import Variety, make_film
from .footage import FilmPool

FILE = "pool.safetensors"
SLICE = 8
"""Frames that are encoded at a time."""


def make_pool(
    encoder: Encoder,
    size: int,
    variety: Variety,
    num_films: int,
    num_frames: int,
    stopped: Callable[[], bool] = lambda: False,
) -> FilmPool | None:
    """Frames 0 to `num_frames` of the films of seeds 0 to `num_films`; None where it was stopped before the end.

    Half precision is kept: what is lost is a thousandth of the noise that the finest level adds.
    """
    films = []
    for seed in range(num_films):
        if stopped():
            return None
        film = make_film(seed, size, variety)
        slices = [
            encoder.encode(film.render(start, min(start + SLICE, num_frames)).frames)
            for start in range(0, num_frames, SLICE)
        ]
        films.append(torch.cat(slices).half().cpu())
    return FilmPool(torch.stack(films))


def write_pool(pool: FilmPool, folder: Path, size: int, variety: Variety) -> None:
    about = {"films": json.dumps({"size": size, "variety": variety})}
    with atomic_write(folder / FILE) as temporary:
        save_file({"latents": pool.latents}, temporary, about)


def read_pool(folder: Path, size: int, variety: Variety) -> FilmPool:
    """Raises `SettingsError` where there is none, or one of other films."""
    path = folder / FILE
    if not path.is_file():
        raise SettingsError(f"{path} is not there yet; run python -m training --stage pool --out {folder} first")
    with safe_open(path, "pt") as file:
        about, latents = json.loads(file.metadata()["films"]), file.get_tensor("latents")
    if about != {"size": size, "variety": variety}:
        raise SettingsError(
            f"{path} holds {about['variety']} films of {about['size']} pixels, not {variety} ones of {size}; "
            "make another with --stage pool, or use another folder"
        )
    return FilmPool(latents)

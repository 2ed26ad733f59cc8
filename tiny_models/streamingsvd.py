"""A tiny StreamingSVD file: every key family of the official one, a few million random weights.

Tests and benchmarks use it where the real weights are not at hand. What it makes is noise that follows its inputs;
sizes, key names, types and code paths are those of the real file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from streaming_core.models.streamingsvd.config import Level
from streaming_core.models.streamingsvd.shapes import official_shapes
from training.configs import DEMO_SVD

TINY = replace(
    DEMO_SVD,
    cam=replace(
        DEMO_SVD.cam,
        unet=replace(DEMO_SVD.cam.unet, levels=(DEMO_SVD.cam.unet.levels[0], Level(64, (0,), False)), vector_width=768),
        pixel_channels=(8, 12, 16, 24),
    ),
    image_encoder=replace(DEMO_SVD.image_encoder, base_channels=32),
    first_stage=replace(DEMO_SVD.first_stage, base_channels=32),
)
"""The demo's networks with less inside. Its three numbers per frame are embedded as widely as the official ones."""


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """Weights of unit gain, so that activations neither vanish nor explode; norms are near 1, mixes at one half."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        if key.endswith("mix_factor"):
            weights[key] = torch.zeros(shape)
        elif len(shape) < 2:
            weights[key] = 0.02 * values + (1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = values / torch.Size(shape[1:]).numel() ** 0.5
    return {key: value.to(dtype) for key, value in weights.items()}


def write(path: Path, weights: Mapping[str, Tensor], pickled: Mapping[str, Any] | None = None) -> Path:
    """A safetensors file, or, by the ending of `path`, a pickle of `pickled` (the weights, where it is not given)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(dict(weights), path)
    else:
        torch.save(weights if pickled is None else pickled, path)
    return path


def write_tiny_streamingsvd(path: Path, seed: int = 0) -> Path:
    """Write the tiny file; a few seconds, about 25 MB."""
    return write(path, random_weights(official_shapes(TINY), seed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    print(write_tiny_streamingsvd(parser.parse_args().path))

"""A tiny I2VGen-XL UNet: official key layout, random weights. What it makes is noise that follows its inputs.

Text and image embeddings are as wide as those of the tiny StreamingModelscope file, whose encoders and VAE go with it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig
from streaming_core.models.i2vgenxl.network import build
from streaming_core.models.registry import shapes_of
from training.configs import DEMO_ENHANCER

from .streamingsvd import random_weights, write

TINY = replace(DEMO_ENHANCER, block_out_channels=(32, 64), attention_levels=(True, False), head_width=16)


def tiny_weights(seed: int = 0, config: I2VGenXLConfig = TINY, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return random_weights(shapes_of(build(config, device="meta").state_dict()), seed, dtype)


def write_tiny_enhancer(path: Path, seed: int = 0) -> Path:
    return write(path, tiny_weights(seed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    print(write_tiny_enhancer(parser.parse_args().path))

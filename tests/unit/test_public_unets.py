"""Our UNets against the public classes of diffusers, called by their public interface, on the same random weights.

`test_library_releases` runs this file again with the oldest and the newest release.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig
from streaming_core.models.i2vgenxl.network import build, position_ramp
from streaming_core.models.modelscope.config import UNet3DConfig
from streaming_core.models.modelscope.unet import VideoUNet
from streaming_core.models.registry import load_strict, shapes_of
from tiny_models.streamingsvd import random_weights

diffusers = pytest.importorskip("diffusers")

VIDEOS, FRAMES, CONTEXT = 2, 5, 48
CLOSE = 1e-5
"""Largest difference, as a share of the largest value; the two differ in kernels and in the order of sums."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def block_types(attention: tuple[bool, ...]) -> dict[str, tuple[str, ...]]:
    return {
        "down_block_types": tuple("CrossAttnDownBlock3D" if there else "DownBlock3D" for there in attention),
        "up_block_types": tuple("CrossAttnUpBlock3D" if there else "UpBlock3D" for there in reversed(attention)),
    }


def with_random_weights(public: nn.Module, ours: nn.Module) -> None:
    """The same weights in both, loaded strictly in both: keys and shapes are the same."""
    weights = random_weights(shapes_of(public.state_dict()), 1, torch.float32)
    public.eval().load_state_dict(weights, strict=True)
    load_strict(ours, weights, "ours")


def difference(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 14)], ids=["even", "odd sizes"])
@pytest.mark.parametrize(
    ("channels", "attention", "layers"),
    [((64, 128, 128), (True, True, False), 2), ((64, 64), (False, True), 1)],
)
@torch.inference_mode()
def test_modelscope_unet(channels, attention, layers, height, width):
    public = diffusers.UNet3DConditionModel(
        **block_types(attention),
        block_out_channels=channels,
        layers_per_block=layers,
        cross_attention_dim=CONTEXT,
        attention_head_dim=64,
    )
    ours = VideoUNet(UNet3DConfig(4, 4, channels, attention, layers, CONTEXT, 8 * 64))
    with_random_weights(public, ours)
    sample, context, timesteps = noise(VIDEOS, 4, FRAMES, height, width), noise(VIDEOS, 7, CONTEXT), [10, 500]
    want = public(sample, torch.tensor(timesteps), encoder_hidden_states=context).sample
    got = ours(sample.movedim(2, 1).flatten(0, 1), torch.tensor(timesteps), ours.project_context(context))
    assert difference(got.unflatten(0, (VIDEOS, FRAMES)).movedim(1, 2), want) <= CLOSE


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 14)], ids=["even", "odd sizes"])
@pytest.mark.parametrize(
    ("channels", "attention", "layers", "head_width", "groups"),
    [((64, 128, 128), (True, True, False), 2, 32, 32), ((16, 24), (False, True), 1, 8, 8)],
)
@torch.inference_mode()
def test_i2vgen_xl(channels, attention, layers, head_width, groups, height, width):
    public = diffusers.I2VGenXLUNet(
        **block_types(attention),
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=groups,
        cross_attention_dim=CONTEXT,
        attention_head_dim=head_width,
    )
    ours = build(I2VGenXLConfig(channels, attention, layers, CONTEXT, head_width, groups))
    with_random_weights(public, ours)
    sample, context = noise(VIDEOS, 4, FRAMES, height, width), noise(VIDEOS, 7, CONTEXT, seed=1)
    timesteps, fps = torch.tensor([925, 40]), torch.tensor([38, 8])
    image, embedding = position_ramp(noise(VIDEOS, 4, height, width, seed=2), FRAMES), noise(VIDEOS, 1, CONTEXT, seed=3)
    want = public(sample, timesteps, fps, image, embedding, encoder_hidden_states=context).sample
    for frugal in (False, True):
        got = ours.denoise(sample, timesteps, context, image, embedding, fps, frugal=frugal)
        assert difference(got, want) <= CLOSE

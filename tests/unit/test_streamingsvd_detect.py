"""Detection and strict loading of StreamingSVD files, on shapes alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import CheckpointError
from streaming_core.models.registry import (
    Architecture,
    IncompleteCheckpointError,
    KnownUnused,
    WrongCheckpointError,
    load_strict,
    shapes_of,
)
from streaming_core.models.streamingsvd.config import CamConfig, Level, VideoUNetConfig
from streaming_core.models.streamingsvd.detect import detect_cam, detect_streamingsvd
from streaming_core.models.streamingsvd.file import split_file
from streaming_core.models.streamingsvd.network import CamNetwork, skip_channels


@st.composite
def cam_configs(draw):
    base = draw(st.sampled_from([32, 64]))
    count = draw(st.integers(1, 3))
    levels = tuple(
        Level(
            base * draw(st.integers(1, 3)),
            tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=2))),
            downsample=index < count - 1,
        )
        for index in range(count)
    )
    # The context width is read off a cross-attention, so one must be there.
    levels = (Level(levels[0].channels, (1, *levels[0].transformer_depths[1:]), levels[0].downsample), *levels[1:])
    pixels = tuple(draw(st.lists(st.integers(4, 12), min_size=4, max_size=4)))
    unet = VideoUNetConfig(8, 4, base, levels, draw(st.integers(1, 2)), draw(st.integers(8, 24)), 24, head_width=32)
    return CamConfig(unet, pixels, merger_head_width=32)


@given(cam_configs())
def test_the_configuration_comes_back_from_the_shapes(config):
    shapes = shapes_of(CamNetwork(config, device="meta").state_dict())
    assert detect_cam(shapes, head_width=32, merger_head_width=32) == config


def test_features_and_mergers_are_one_to_one():
    unet = VideoUNetConfig(8, 4, 32, (Level(32, (1,), True), Level(64, (0,), False)), 1, 16, 24, head_width=32)
    network = CamNetwork(CamConfig(unet, (8, 8, 8, 8), 32)).eval()
    x = torch.randn(4, 8, 8, 8)
    with torch.inference_mode():
        control = network.encode_pixels(torch.randn(2, 3, 64, 64))
        features = network.controlnet(x, torch.ones(4), torch.randn(4, 1, 16), torch.randn(4, 24), control, frames=2)
    assert [feature.shape[1] for feature in features.skips] == skip_channels(unet)
    assert len(network.cross_attention_merger_input_blocks) == len(features.skips)


def test_frames_behind_a_clip_do_not_change_the_other_clip():
    unet = VideoUNetConfig(8, 4, 32, (Level(32, (1,), False),), 1, 16, 24, head_width=32)
    network = CamNetwork(CamConfig(unet, (8, 8, 8, 8), 32)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 8, 8, generator=generator)
    context, vector = torch.randn(4, 1, 16, generator=generator), torch.randn(4, 24, generator=generator)
    control = torch.randn(2, 32, 8, 8, generator=generator)

    def middle(x):
        return network.controlnet(x, torch.ones(4), context, vector, control, frames=2).middle

    with torch.inference_mode():
        changed = x.clone()
        changed[2:] += 1
        assert torch.allclose(middle(x)[:2], middle(changed)[:2], atol=1e-5)
        assert not torch.allclose(middle(x)[2:], middle(changed)[2:], atol=1e-3)


RULES = Architecture(
    name="Thing",
    required={"a.": "the first part", "b.": "the second part"},
    looks_like=((("c.",), "another thing"),),
    known_unused=(KnownUnused("old.", "left over"),),
)


def test_refusals_name_what_is_missing_and_what_it_looks_like():
    RULES.check(["a.x", "b.y"], "file")
    with pytest.raises(WrongCheckpointError, match=r"file is not a Thing checkpoint: no b\.\* \(the second part\)"):
        RULES.check(["a.x"], "file")
    with pytest.raises(WrongCheckpointError, match="looks like another thing"):
        RULES.check(["a.x", "c.y"], "file")
    assert RULES.unused_reason("old.z") == "left over"
    assert RULES.unused_reason("a.x") is None


def test_strict_loading_counts_and_names():
    layer = torch.nn.Linear(2, 3)
    load_strict(layer, {"weight": torch.zeros(3, 2), "bias": torch.ones(3)}, "the layer")
    assert layer.bias.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(IncompleteCheckpointError, match=r"1 missing \(first bias\); 1 unexpected \(first extra\)"):
        load_strict(layer, {"weight": torch.zeros(3, 2), "extra": torch.ones(3)}, "the layer")
    with pytest.raises(IncompleteCheckpointError, match=r"1 of another shape \(first bias: \(4,\), not \(3,\)\)"):
        load_strict(layer, {"weight": torch.zeros(3, 2), "bias": torch.ones(4)}, "the layer")


def test_an_empty_file_is_refused():
    with pytest.raises(WrongCheckpointError, match="not a StreamingSVD checkpoint"):
        detect_streamingsvd({}, "empty.safetensors")


def test_unknown_keys_are_refused_and_known_ones_explained():
    one = torch.zeros(1)
    assert split_file({"image_encoder_apm.x": one}, "file").unused == {
        "image_encoder_apm.x": "left over from training; StreamingSVD has no APM"
    }
    with pytest.raises(CheckpointError, match=r"1 keys that StreamingSVD does not know \(first mystery\)"):
        split_file({"mystery": one}, "file")

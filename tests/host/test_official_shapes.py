"""The official layout that `streaming_core` writes down is the one that the host's own networks have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hosting.inprocess import import_host, import_pack
from streaming_core.models.registry import shapes_of
from streaming_core.models.shapes import autoencoder_shapes
from streaming_core.models.streamingsvd.detect import UNET_PREFIX
from streaming_core.models.streamingsvd.file import unet_weights
from streaming_core.models.streamingsvd.shapes import OFFICIAL, official_shapes
from tiny_models.streamingsvd import TINY

UNETS = {"tiny": TINY.cam.unet, "full size": OFFICIAL.cam.unet}


@pytest.mark.parametrize("size", UNETS)
def test_the_video_unet_is_the_hosts(size):
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.svd import build

    unet = build.empty_video_unet(UNETS[size], torch.float32, 1, device="meta").diffusion_model
    shapes = official_shapes(replace(TINY, cam=replace(TINY.cam, unet=UNETS[size])))
    assert unet_weights({key: shape for key, shape in shapes.items() if key.startswith(UNET_PREFIX)}) == shapes_of(
        unet.state_dict()
    )


@pytest.mark.parametrize("temporal", (False, True))
def test_the_autoencoder_is_the_hosts(temporal):
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host.svd import build

    config = replace(OFFICIAL.first_stage, temporal=temporal)
    with torch.device("meta"):
        host = shapes_of(build.SplitAutoencoder(config, config).state_dict())
    shapes = autoencoder_shapes(config)
    assert {key: shape for key, shape in shapes.items() if not key.startswith("post_quant_conv.")} == host

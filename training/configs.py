"""Configurations of the demo models, one per family: the smallest widths that the official layouts allow.

Heads are 64 wide there, and norms have 32 groups.
"""

from __future__ import annotations

from dataclasses import replace

from streaming_core.models.dropletvideo.config import CausalVaeConfig, DropletConfig
from streaming_core.models.ema_vfi.config import standard_config
from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig
from streaming_core.models.lvdm.config import NOISE_LEVELS, LvdmConfig, VideoAutoencoderConfig
from streaming_core.models.modelscope.config import (
    ImageProjectorConfig,
    MixerConfig,
    ModelscopeCamConfig,
    StreamingModelscopeConfig,
    TextEncoderConfig,
    UNet3DConfig,
)
from streaming_core.models.streamingsvd.config import CamConfig, Level, StreamingSVDConfig, VideoUNetConfig
from streaming_core.models.towers import ClipVisionConfig, VaeConfig

WIDTH = 64
"""Of text and image embeddings."""

DEMO_SVD = StreamingSVDConfig(
    cam=CamConfig(
        unet=VideoUNetConfig(
            in_channels=8,
            out_channels=4,
            model_channels=64,
            levels=(Level(64, (1,), downsample=True), Level(64, (1,), downsample=False)),
            middle_depth=1,
            context_width=WIDTH,
            vector_width=192,
        ),
        pixel_channels=(16, 32, 64, 96),
    ),
    image_encoder=VaeConfig(64, (1, 1, 1, 1), 1, 4, temporal=False),
    first_stage=VaeConfig(64, (1, 1, 1, 1), 1, 4, temporal=True),
    clip_vision=ClipVisionConfig(WIDTH, 2, 1, 128, 56, 224, WIDTH),
)
"""The VAE is 64 wide, too: at 32 every channel is normed by itself, which takes its mean away, and with it the colors.
"""

DEMO_TEXT_TO_VIDEO = UNet3DConfig(
    in_channels=4,
    out_channels=4,
    channels=(64, 64),
    attention=(False, True),
    layers_per_block=1,
    context_width=WIDTH,
    input_attention_width=64,
)
"""The base UNet of StreamingModelscope; spatial transformers at half the resolution only, where they cost less."""

DEMO_MODELSCOPE = StreamingModelscopeConfig(
    unet=replace(DEMO_TEXT_TO_VIDEO, mixers=MixerConfig(text_tokens=77, context_tokens=93, kernel=3)),
    cam=ModelscopeCamConfig(DEMO_TEXT_TO_VIDEO, (16, 32, 64, 96)),
    image_projector=ImageProjectorConfig(WIDTH, 256, 16),
    vae=DEMO_SVD.image_encoder,
    text_encoder=TextEncoderConfig(49408, WIDTH, 1, 1, 128, 77),
    clip_vision=ClipVisionConfig(WIDTH, 2, 1, 128, 28, 224, WIDTH),
)

DEMO_ENHANCER = I2VGenXLConfig(
    block_out_channels=DEMO_TEXT_TO_VIDEO.channels,
    attention_levels=DEMO_TEXT_TO_VIDEO.attention,
    layers_per_block=DEMO_TEXT_TO_VIDEO.layers_per_block,
    cross_attention_dim=WIDTH,
    head_width=8,
)
"""As `DEMO_TEXT_TO_VIDEO`, but for narrower heads: the first temporal transformer has eight, whatever the width."""

DEMO_VFI = replace(standard_config(8, (1, 1, 1, 2, 2)), flow_channels=(64, 64), refine_channels=8)
"""Half as wide as `ours_small`, with more of it in the flow heads and less in the refinement."""

DEMO_DROPLET_VAE = CausalVaeConfig(channels=(16, 32, 48, 48), layers_per_block=1, norm_groups=4)
"""Fewer groups than the published 32: a channel that is normed by itself loses its mean, and with it the colors."""

DEMO_DROPLET = DropletConfig(
    width=128, head_width=32, layers=6, text_width=WIDTH, embedding_width=64, feed_forward_width=512
)
"""Its text is that of StreamingModelscope's demo: the host builds a T5 XXL in full size whatever the file holds."""

DEMO_LVDM_AE = VideoAutoencoderConfig(base_channels=16, scales=(2, 4, 4))
"""One level fewer than the published one: a latent stands for two frames."""

DEMO_LVDM = LvdmConfig(width=64, multipliers=(1, 2), blocks_per_level=1, attention=(False, True), temporal_length=4)
DEMO_LVDM_PREDICTION = replace(DEMO_LVDM, in_channels=5, labels=NOISE_LEVELS + 1)
DEMO_LVDM_INTERPOLATION = replace(DEMO_LVDM_PREDICTION, temporal_length=5)

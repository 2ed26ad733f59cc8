"""The official layout of a StreamingSVD file from its configuration, the way back from `detect.py`.

The host builds the UNet's decoder and the autoencoders, so they have no module of ours; a test compares these keys with
the host's networks.
"""

from __future__ import annotations

from torch import nn

from ..registry import shapes_of
from ..shapes import KeyShapes, autoencoder_shapes, openclip_shapes
from ..towers import ClipVisionConfig, VaeConfig
from .blocks import SpatioTemporalTransformer, VideoResBlock
from .config import CamConfig, Level, StreamingSVDConfig, VideoUNetConfig
from .detect import CAM_PREFIX, CLIP_VISION_PREFIX, FIRST_STAGE_PREFIX, IMAGE_ENCODER_PREFIX, UNET_PREFIX
from .network import CamNetwork, skip_channels

OFFICIAL = StreamingSVDConfig(
    cam=CamConfig(
        unet=VideoUNetConfig(
            in_channels=8,
            out_channels=4,
            model_channels=320,
            levels=(
                Level(320, (1, 1), downsample=True),
                Level(640, (1, 1), downsample=True),
                Level(1280, (1, 1), downsample=True),
                Level(1280, (0, 0), downsample=False),
            ),
            middle_depth=1,
            context_width=1024,
            vector_width=768,
        ),
        pixel_channels=(32, 96, 256, 512),
    ),
    image_encoder=VaeConfig(128, (1, 2, 4, 4), 2, 4, temporal=False),
    first_stage=VaeConfig(128, (1, 2, 4, 4), 2, 4, temporal=True),
    clip_vision=ClipVisionConfig(1280, 32, 16, 5120, 14, 224, 1024),
)
"""The released file: SVD-XT with CAM."""
PIXEL_ENCODER = CAM_PREFIX + "controlnet_cond_embedding."


def decoder_shapes(unet: VideoUNetConfig) -> KeyShapes:
    """Keys of the decoder half of the video UNet, `output_blocks.` and `out.`."""
    options = {"embedding_width": 4 * unet.model_channels, "device": "meta"}
    skips, channels, index = skip_channels(unet), unet.levels[-1].channels, 0
    shapes: KeyShapes = {}
    for number, level in reversed(list(enumerate(unet.levels))):
        # It mirrors the encoder, with one block more per level that is like the level's last one.
        depths = (*level.transformer_depths, level.transformer_depths[-1])[::-1]
        for block, depth in enumerate(depths):
            layers: list[nn.Module] = [VideoResBlock(channels + skips.pop(), out_channels=level.channels, **options)]
            channels = level.channels
            if depth:
                widths = (channels, unet.head_width, depth, unet.context_width)
                layers.append(SpatioTemporalTransformer(*widths, device="meta"))
            stem = f"output_blocks.{index}"
            for place, layer in enumerate(layers):
                shapes |= {f"{stem}.{place}.{key}": shape for key, shape in shapes_of(layer.state_dict()).items()}
            if number and block == len(depths) - 1:
                upsampler = f"{stem}.{len(layers)}.conv"
                shapes |= {f"{upsampler}.weight": (channels, channels, 3, 3), f"{upsampler}.bias": (channels,)}
            index += 1
    shapes |= {"out.0.weight": (channels,), "out.0.bias": (channels,)}
    return shapes | {"out.2.weight": (unet.out_channels, channels, 3, 3), "out.2.bias": (unet.out_channels,)}


def official_shapes(config: StreamingSVDConfig) -> KeyShapes:
    """Every key and shape of a file of this configuration, unused parts too, but for the inside of the text tower."""
    cam = shapes_of(CamNetwork(config.cam, device="meta").state_dict())
    shapes = {key if key.startswith(CAM_PREFIX) else UNET_PREFIX + key: shape for key, shape in cam.items()}
    # CAM's encoder is a copy of the UNet's, with the pixel encoder added.
    shapes |= {
        UNET_PREFIX + key.removeprefix(CAM_PREFIX): shape
        for key, shape in shapes.items()
        if key.startswith(CAM_PREFIX) and not key.startswith(PIXEL_ENCODER)
    }
    shapes |= {UNET_PREFIX + key: shape for key, shape in decoder_shapes(config.cam.unet).items()}
    image, first_stage = autoencoder_shapes(config.image_encoder), autoencoder_shapes(config.first_stage)
    shapes |= {IMAGE_ENCODER_PREFIX + key: shape for key, shape in image.items()}
    own = {key: shape for key, shape in first_stage.items() if key.startswith(("encoder.", "decoder."))}
    shapes |= {FIRST_STAGE_PREFIX + key: shape for key, shape in own.items()}
    shapes |= {CLIP_VISION_PREFIX + key: shape for key, shape in openclip_shapes(config.clip_vision).items()}
    text, width = CLIP_VISION_PREFIX.removesuffix("visual."), config.clip_vision.projection_width
    return shapes | {text + "text_projection": (width, width), text + "logit_scale": ()}

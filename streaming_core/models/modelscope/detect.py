"""From keys and shapes of ModelScope-family files to configuration (reference: streamingmodelscope, section 3)."""

from __future__ import annotations

import re

from ...errors import CheckpointError
from ..registry import Architecture, KnownUnused, Shapes, count_indices, dimension
from ..towers import ClipVisionConfig, VaeConfig, detect_clip_vision, detect_pixel_channels
from .config import (
    ImageProjectorConfig,
    MixerConfig,
    ModelscopeCamConfig,
    StreamingModelscopeConfig,
    TextEncoderConfig,
    UNet3DConfig,
)

UNET_PREFIX = "base_model."
CAM_PREFIX = "unet."
APM_PREFIX = "resampler."
CLIP_VISION_PREFIX = "image_encoder.model.visual."
TEXT_PREFIX = "text_encoder."
VAE_PREFIX = "vae."
MERGER_STEM = "cross_attention_merger_"

_SVD_LOOKS = (("controlnet.", "model.diffusion_model.", "conditioner."), "a StreamingSVD checkpoint")
_BASE_LOOKS = (("transformer_in.", "down_blocks.0.temp_convs."), "a ModelScope text-to-video UNet without CAM and APM")
_VID2VID_LOOKS = (("input_blocks.0.1.", "time_embed.", "out.0."), "an MS-Vid2Vid UNet, which Load Enhancer reads")
_SVD_XT_LOOKS = (
    ("model.diffusion_model.input_blocks.1.1.time_stack.",),
    "plain SVD, which ComfyUI's Image Only Checkpoint Loader reads",
)
_SD_LOOKS = (("model.diffusion_model.input_blocks.",), "a Stable Diffusion checkpoint")

ARCHITECTURE = Architecture(
    name="StreamingModelscope",
    required={
        UNET_PREFIX + "transformer_in.": "the video UNet",
        UNET_PREFIX + MERGER_STEM: "the CAM mergers",
        CAM_PREFIX + "controlnet_cond_embedding.": "the CAM branch",
        APM_PREFIX: "the APM token network",
        CLIP_VISION_PREFIX: "the CLIP image tower",
        TEXT_PREFIX: "the text encoder",
        VAE_PREFIX + "decoder.": "the VAE",
    },
    looks_like=(_SVD_LOOKS, _BASE_LOOKS, _VID2VID_LOOKS, _SVD_XT_LOOKS, _SD_LOOKS),
    known_unused=tuple(
        KnownUnused("image_encoder.model." + name, "text side of the image encoder's CLIP, never run")
        for name in ("positional_embedding", "text_projection", "logit_scale", "token_embedding.", "ln_final.")
    )
    + (KnownUnused(TEXT_PREFIX + "text_model.embeddings.position_ids", "a constant that old files carry"),),
)

BASE_ARCHITECTURE = Architecture(
    name="ModelScope text-to-video UNet",
    required={
        "conv_in.": "the entry of a diffusers UNet",
        "transformer_in.": "the temporal entry",
        "down_blocks.0.temp_convs.": "temporal convolutions",
        "up_blocks.": "the up path",
    },
    looks_like=(
        (
            (UNET_PREFIX, CAM_PREFIX, APM_PREFIX),
            "a whole StreamingModelscope checkpoint, which Load StreamingModelscope reads",
        ),
        _SVD_LOOKS,
        _VID2VID_LOOKS,
        _SVD_XT_LOOKS,
        _SD_LOOKS,
        (("down_blocks.",), "another diffusers UNet"),
    ),
)


def detect_unet(shapes: Shapes, prefix: str = "", head_width: int = 64, padded_rows: bool = False) -> UNet3DConfig:
    """Configuration of a 3-D UNet in the diffusers layout, or of the down path of one.

    Head width is not visible in shapes: the family has 64 everywhere, so only tests pass another value.
    """
    shapes = {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}
    levels = count_indices(shapes, r"down_blocks\.(\d+)\.")
    attention = tuple(
        count_indices(shapes, rf"down_blocks\.{level}\.attentions\.(\d+)\.") > 0 for level in range(levels)
    )
    if True not in attention:
        raise CheckpointError(
            f"cannot read the context width: no {prefix}down_blocks.*.attentions; use a complete file"
        )
    layers = {count_indices(shapes, rf"down_blocks\.{level}\.resnets\.(\d+)\.") for level in range(levels)}
    if len(layers) != 1:
        raise CheckpointError(f"{prefix}down_blocks have {sorted(layers)} layers each; all levels must have the same")
    cross = f"down_blocks.{attention.index(True)}.attentions.0.transformer_blocks.0.attn2."
    mixers = None
    if cross + "conv.weight" in shapes:
        text_tokens, context_tokens, kernel = shapes[cross + "conv.weight"]
        mixers = MixerConfig(int(text_tokens), int(context_tokens), int(kernel))
    width = dimension(shapes, "conv_in.weight", 0)
    return UNet3DConfig(
        in_channels=dimension(shapes, "conv_in.weight", 1),
        out_channels=int(shapes.get("conv_out.weight", shapes["conv_in.weight"][1:])[0]),
        channels=tuple(dimension(shapes, f"down_blocks.{i}.resnets.0.conv2.weight", 0) for i in range(levels)),
        attention=attention,
        layers_per_block=layers.pop(),
        context_width=dimension(shapes, cross + "to_k.weight", 1),
        input_attention_width=int(shapes.get("transformer_in.proj_in.weight", (8 * head_width, width))[0]),
        head_width=head_width,
        padded_rows=padded_rows,
        mixers=mixers,
    )


def detect_cam(
    shapes: Shapes, prefix: str = CAM_PREFIX, head_width: int = 64, merger_head_width: int = 64
) -> ModelscopeCamConfig:
    """Configuration of the CAM branch; the mergers follow its channels."""
    return ModelscopeCamConfig(
        unet=detect_unet(shapes, prefix, head_width),
        pixel_channels=detect_pixel_channels(shapes, prefix + "controlnet_cond_embedding."),
        merger_head_width=merger_head_width,
    )


def detect_image_projector(shapes: Shapes, prefix: str = APM_PREFIX) -> ImageProjectorConfig:
    """Configuration of the APM token network; the release makes 16 tokens of 1024."""
    inner, width = (dimension(shapes, prefix + "context_embedding.0.weight", axis) for axis in (0, 1))
    out = dimension(shapes, prefix + "context_embedding.2.weight", 0)
    if out % width:
        raise CheckpointError(
            f"{prefix}context_embedding.2 gives {out} values, not a multiple of the token width {width}"
        )
    return ImageProjectorConfig(width=width, inner_width=inner, tokens=out // width)


def detect_text_encoder(shapes: Shapes, prefix: str = TEXT_PREFIX) -> TextEncoderConfig:
    """Configuration of a CLIP text tower in the transformers layout; heads are 64 wide, as in every CLIP tower."""
    stem = prefix + "text_model."
    width = dimension(shapes, stem + "embeddings.token_embedding.weight", 1)
    return TextEncoderConfig(
        vocabulary=dimension(shapes, stem + "embeddings.token_embedding.weight", 0),
        width=width,
        layers=count_indices(shapes, re.escape(stem) + r"encoder\.layers\.(\d+)\."),
        heads=max(1, width // 64),
        mlp_width=dimension(shapes, stem + "encoder.layers.0.mlp.fc1.weight", 0),
        max_tokens=dimension(shapes, stem + "embeddings.position_embedding.weight", 0),
    )


def detect_diffusers_vae(shapes: Shapes, prefix: str = VAE_PREFIX) -> VaeConfig:
    """Configuration of a KL autoencoder in the diffusers layout."""
    levels = count_indices(shapes, re.escape(prefix) + r"encoder\.down_blocks\.(\d+)\.")
    widths = [dimension(shapes, f"{prefix}encoder.down_blocks.{i}.resnets.0.conv2.weight", 0) for i in range(levels)]
    base = dimension(shapes, prefix + "encoder.conv_in.weight", 0)
    return VaeConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=count_indices(shapes, re.escape(prefix) + r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        latent_channels=dimension(shapes, prefix + "decoder.conv_in.weight", 1),
        temporal=False,
    )


def detect_streamingmodelscope(
    shapes: Shapes, source: str = "the file", head_width: int = 64, merger_head_width: int = 64
) -> StreamingModelscopeConfig:
    """Configuration of a whole `streaming_t2v.ckpt`.

    Raises `WrongCheckpointError`, which says what is missing and what the file looks like instead.
    """
    ARCHITECTURE.check(shapes, source)
    vision: ClipVisionConfig = detect_clip_vision(shapes, CLIP_VISION_PREFIX)
    return StreamingModelscopeConfig(
        unet=detect_unet(shapes, UNET_PREFIX, head_width),
        cam=detect_cam(shapes, CAM_PREFIX, head_width, merger_head_width),
        image_projector=detect_image_projector(shapes),
        vae=detect_diffusers_vae(shapes),
        text_encoder=detect_text_encoder(shapes),
        clip_vision=vision,
    )

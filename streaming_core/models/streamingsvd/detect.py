"""From keys and shapes of a StreamingSVD file to its configuration (reference: streamingsvd, section 3)."""

from __future__ import annotations

from ...errors import CheckpointError
from ..registry import Architecture, KnownUnused, Shapes, count_indices, dimension
from ..towers import detect_clip_vision, detect_pixel_channels, detect_vae, detect_vae_encoder
from .config import CamConfig, Level, StreamingSVDConfig, VideoUNetConfig

UNET_PREFIX = "model.diffusion_model."
MERGER_PREFIX = UNET_PREFIX + "cross_attention_merger_"
CAM_PREFIX = "controlnet."
CLIP_VISION_PREFIX = "conditioner.embedders.0.open_clip.model.visual."
IMAGE_ENCODER_PREFIX = "conditioner.embedders.3.encoder."
FIRST_STAGE_PREFIX = "first_stage_model."

ARCHITECTURE = Architecture(
    name="StreamingSVD",
    required={
        CAM_PREFIX: "the CAM encoder",
        MERGER_PREFIX: "the CAM mergers",
        UNET_PREFIX + "input_blocks.0.": "the video UNet",
        CLIP_VISION_PREFIX: "the CLIP image tower",
        IMAGE_ENCODER_PREFIX + "encoder.": "the image-conditioning VAE",
        FIRST_STAGE_PREFIX + "decoder.": "the VAE with temporal decoder",
    },
    looks_like=(
        (
            (UNET_PREFIX + "input_blocks.1.1.time_stack.", CLIP_VISION_PREFIX),
            "plain SVD or SVD-XT, which ComfyUI's Image Only Checkpoint Loader reads",
        ),
        (
            (UNET_PREFIX + "input_blocks.1.1.time_stack.",),
            "the video model of SVD alone, which ComfyUI's Load Diffusion Model reads",
        ),
        ((UNET_PREFIX + "input_blocks.",), "a Stable Diffusion checkpoint"),
        (("resampler.", "image_encoder.", "unet."), "a StreamingModelscope checkpoint"),
        (("down_blocks.",), "a diffusers UNet"),
    ),
    known_unused=(
        KnownUnused("image_encoder_apm", "left over from training; StreamingSVD has no APM"),
        KnownUnused(FIRST_STAGE_PREFIX + "encoder.", "images are encoded by the image-conditioning VAE"),
        KnownUnused(IMAGE_ENCODER_PREFIX + "decoder.", "frames are decoded by the temporal decoder"),
        KnownUnused(IMAGE_ENCODER_PREFIX + "post_quant_conv.", "frames are decoded by the temporal decoder"),
        KnownUnused("conditioner.embedders.0.open_clip.model.transformer.", "text tower, never run"),
        KnownUnused("conditioner.embedders.0.open_clip.model.positional_embedding", "text tower, never run"),
        KnownUnused("conditioner.embedders.0.open_clip.model.text_projection", "text tower, never run"),
        KnownUnused("conditioner.embedders.0.open_clip.model.logit_scale", "text tower, never run"),
        KnownUnused("conditioner.embedders.0.open_clip.model.token_embedding.", "text tower, never run"),
        KnownUnused("conditioner.embedders.0.open_clip.model.ln_final.", "text tower, never run"),
        KnownUnused("conditioner.embedders.0.open_clip.model.attn_mask", "text tower, never run"),
    ),
)


def detect_video_unet(shapes: Shapes, prefix: str = UNET_PREFIX, head_width: int = 64) -> VideoUNetConfig:
    """Configuration of a video UNet, or of the CAM encoder (which has no decoder: 4 output channels are assumed).

    Head width is not visible in shapes: SVD has 64 everywhere, so only tests pass another value.
    """
    keys = [key[len(prefix) :] for key in shapes if key.startswith(prefix)]
    model_channels = dimension(shapes, f"{prefix}input_blocks.0.0.weight", 0)
    levels: list[Level] = []
    channels = model_channels
    depths: list[int] = []
    for index in range(1, count_indices(keys, r"input_blocks\.(\d+)\.")):
        stem = f"input_blocks.{index}"
        if f"{prefix}{stem}.0.op.weight" in shapes:
            levels.append(Level(channels, tuple(depths), downsample=True))
            depths = []
        else:
            channels = dimension(shapes, f"{prefix}{stem}.0.in_layers.2.weight", 0)
            depths.append(count_indices(keys, rf"input_blocks\.{index}\.1\.transformer_blocks\.(\d+)\."))
    levels.append(Level(channels, tuple(depths), downsample=False))
    context_keys = [key for key in shapes if key.startswith(prefix) and key.endswith(".attn2.to_k.weight")]
    if not context_keys:
        raise CheckpointError(f"cannot read the context width: no {prefix}*.attn2.to_k.weight; use a complete file")
    out_key = f"{prefix}out.2.weight"
    return VideoUNetConfig(
        in_channels=dimension(shapes, f"{prefix}input_blocks.0.0.weight", 1),
        out_channels=int(shapes[out_key][0]) if out_key in shapes else 4,
        model_channels=model_channels,
        levels=tuple(levels),
        middle_depth=count_indices(keys, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        context_width=int(shapes[context_keys[0]][1]),
        vector_width=dimension(shapes, f"{prefix}label_emb.0.0.weight", 1),
        head_width=head_width,
    )


def detect_cam(
    shapes: Shapes, prefix: str = CAM_PREFIX, head_width: int = 64, merger_head_width: int = 64
) -> CamConfig:
    """Configuration of the CAM network from its encoder's keys."""
    return CamConfig(
        unet=detect_video_unet(shapes, prefix, head_width),
        pixel_channels=detect_pixel_channels(shapes, prefix + "controlnet_cond_embedding."),
        merger_head_width=merger_head_width,
    )


def detect_streamingsvd(
    shapes: Shapes, source: str = "the file", head_width: int = 64, merger_head_width: int = 64
) -> StreamingSVDConfig:
    """Configuration of a whole StreamingSVD file.

    Raises `WrongCheckpointError`, which says what is missing and what the file looks like instead.
    """
    ARCHITECTURE.check(shapes, source)
    return StreamingSVDConfig(
        cam=detect_cam(shapes, head_width=head_width, merger_head_width=merger_head_width),
        image_encoder=detect_vae_encoder(shapes, IMAGE_ENCODER_PREFIX),
        first_stage=detect_vae(shapes, FIRST_STAGE_PREFIX),
        clip_vision=detect_clip_vision(shapes, CLIP_VISION_PREFIX),
    )

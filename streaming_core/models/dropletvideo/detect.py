"""From keys and shapes of a file, and its config.json where there is one, to the configuration of a network.

Sizes come from shapes. What leaves no trace there is taken from config.json, or else is the published model's
(reference: dropletvideo, sections 2, 4 and 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ..registry import (
    Architecture,
    IncompleteCheckpointError,
    Shapes,
    WrongCheckpointError,
    count_indices,
    take,
)
from .config import SPATIAL_SCALE, TEMPORAL_SCALE, CausalVaeConfig, DropletConfig

Settings = Mapping[str, Any]
"""A parsed config.json."""

T5 = (("encoder.block.",), "a T5 text encoder, which a text encoder loader reads")
TRANSFORMER = (("transformer_blocks.", "patch_embed."), "a transformer, not its VAE")

PREFIXES = ("model.diffusion_model.", "transformer.", "module.", "vae.", "first_stage_model.")
"""What tools put before every key of a network when they save it alone."""


def official_keys(shapes: Shapes) -> Shapes:
    """The shapes under the published keys: without a prefix that all of them have."""
    for prefix in PREFIXES:
        if shapes and all(key.startswith(prefix) for key in shapes):
            return take(shapes, prefix)
    return shapes


def _relative(shapes: Shapes) -> str | None:
    """Models of the same layout, which shapes tell apart, and LoRAs, in words."""
    shapes = official_keys(shapes)
    if any(".lora_" in key or key.startswith("lora_") for key in shapes):
        return "a LoRA: load it with a LoRA loader"
    first = shapes.get("patch_embed.proj.weight")
    if first is None or "patch_embed.text_proj.weight" not in shapes:
        return None
    size = "2B" if first[0] < 2048 else "5B"
    if len(first) == 2:
        return f"CogVideoX 1.5 {size}"
    if first[1] % 16:
        return f"CogVideoX-Fun {size} InP, from which DropletVideo was trained"
    return {
        16: f"CogVideoX {size} (text to video)",
        32: f"CogVideoX {size} (image to video) or CogVideoX-Fun Control",
    }.get(first[1], f"a CogVideoX {size} with {first[1]} input channels")


ARCHITECTURE = Architecture(
    name="DropletVideo",
    required={
        "fps_embedding.": "the frame-rate condition",
        "patch_embed.text_proj.": "the projection of the text",
        "transformer_blocks.": "the transformer blocks",
    },
    looks_like=(
        (("encoder.down_blocks.", "decoder.up_blocks.", "decoder.conv_in.conv."), "CogVideoX's VAE: load it as VAE"),
        (("encoder.", "decoder.conv_in."), "a VAE"),
        T5,
        (("text_model.",), "a CLIP text encoder"),
        (("time_embedding_linear_1.", "blocks."), "CogVideoX in ComfyUI's own layout; the diffusers layout is needed"),
        (("transformer.layers.", "mixins."), "CogVideoX in its original layout; the diffusers layout is needed"),
        (("model.diffusion_model.",), "a complete checkpoint of another model"),
        (("fps_embedding.", "down_blocks."), "I2VGen-XL: use the enhancer's loader"),
        (("down_blocks.", "up_blocks."), "a UNet"),
        (("input_blocks.", "output_blocks."), "a UNet in its original layout"),
        (("transformer_blocks.", "x_embedder."), "a transformer for images"),
        (("transformer_blocks.",), "one part of a split checkpoint, or another model's transformer: use a whole file"),
        (("blocks.", "patch_embedding."), "a Wan transformer, which ComfyUI loads itself"),
        (("double_blocks.",), "a Flux or Hunyuan transformer, which ComfyUI loads itself"),
    ),
    relative=_relative,
)

VAE_ARCHITECTURE = Architecture(
    name="CogVideoX VAE",
    required={
        "encoder.conv_in.conv.": "the causal encoder",
        "decoder.conv_in.conv.": "the causal decoder",
        "decoder.mid_block.resnets.0.norm1.conv_y.": "norms that follow the latents",
    },
    looks_like=(
        (("fps_embedding.", "transformer_blocks."), "DropletVideo's transformer: load it as the model"),
        TRANSFORMER,
        T5,
        (("encoder.down.", "decoder.up.", "decoder.conv_in.conv."), "this VAE in its original layout; use diffusers'"),
        (("encoder.down.", "decoder.up."), "a VAE in the layout of Stable Diffusion"),
        (("encoder.conv1.", "decoder.conv1."), "the VAE of Wan"),
        (("encoder.down_blocks.", "decoder.up_blocks."), "another model's VAE"),
        (("decoder.conv_in.conv.",), "a decoder without its encoder: use a whole file"),
        (("encoder.conv_in.conv.",), "an encoder without its decoder: use a whole file"),
        (("transformer_blocks.",), "a transformer"),
    ),
)

FIXED = {
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "patch_size_t": None,
    "use_rotary_positional_embeddings": True,
    "temporal_compression_ratio": TEMPORAL_SCALE,
}
"""Entries of the transformer's config.json for which there is one value."""
VAE_FIXED = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "shift_factor": None,
    "temporal_compression_ratio": TEMPORAL_SCALE,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""The same of the VAE's."""


def detect(shapes: Shapes, source: str = "the file", settings: Settings | None = None) -> DropletConfig:
    """The transformer with these published keys and shapes.

    Args:
        shapes: of every tensor in the file.
        source: names the file in errors.
        settings: its config.json.

    Raises:
        WrongCheckpointError: another network, by its name.
        IncompleteCheckpointError: a part of the network is missing.
        CheckpointError: sizes that contradict each other or config.json.
    """
    settings = settings or {}
    ARCHITECTURE.check(shapes, source)
    try:
        width, in_channels, *patch = shapes["patch_embed.proj.weight"]
        block = "transformer_blocks.0."
        config = DropletConfig(
            width=width,
            head_width=shapes[f"{block}attn1.norm_q.weight"][0],
            layers=_layers(shapes),
            in_channels=in_channels,
            out_channels=shapes["proj_out.weight"][0] // (patch[0] ** 2 if patch else 1),
            text_width=shapes["patch_embed.text_proj.weight"][1],
            embedding_width=shapes["time_embedding.linear_1.weight"][0],
            feed_forward_width=shapes[f"{block}ff.net.0.proj.weight"][0],
            patch=patch[0] if patch else 1,
            norm_eps=settings.get("norm_eps", DropletConfig.norm_eps),
            noise_on_reference=bool(settings.get("add_noise_in_inpaint_model", False)),
        )
    except KeyError as missing:
        raise IncompleteCheckpointError(
            f"{source} looks like DropletVideo but lacks {missing}; use a whole file"
        ) from None
    if len(patch) != 2 or config.in_channels != 2 * config.out_channels + 1:
        raise WrongCheckpointError(
            f"{source} has an FPS embedding, but its first layer takes {in_channels} values in {len(patch)} "
            f"dimensions; DropletVideo's takes {2 * config.out_channels + 1} channels in 2: noisy latents, a mask and "
            "known latents"
        )
    if config.width % config.head_width or config.head_width % 16:
        raise CheckpointError(
            f"{source} is {config.width} wide with heads of {config.head_width}, which do not divide it or cannot be "
            "split for time, rows and columns; use an unmodified file"
        )
    _compare(settings, FIXED, source)
    found = {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_width,
        "num_layers": config.layers,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "text_embed_dim": config.text_width,
        "time_embed_dim": config.embedding_width,
        "patch_size": config.patch,
    }
    _compare(settings, found, source)
    return config


def _layers(shapes: Shapes) -> int:
    """One more than the highest index: a gap is then reported as missing keys, not as unexpected ones."""
    return 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("transformer_blocks."))


def detect_vae(shapes: Shapes, source: str = "the file", settings: Settings | None = None) -> CausalVaeConfig:
    """The VAE with these published keys and shapes; arguments and errors are those of `detect`.

    CogVideoX's VAEs have the same shapes. Without config.json its scaling factor is that of the 5B models, 0.7; the
    2B model's VAE has another one.
    """
    settings = settings or {}
    VAE_ARCHITECTURE.check(shapes, source)
    try:
        levels = count_indices(shapes, r"encoder\.down_blocks\.(\d+)\.")
        config = CausalVaeConfig(
            channels=tuple(
                shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight"][0] for level in range(levels)
            ),
            layers_per_block=count_indices(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            latent_channels=shapes["decoder.conv_in.conv.weight"][1],
            norm_groups=settings.get("norm_num_groups", CausalVaeConfig.norm_groups),
            norm_eps=settings.get("norm_eps", CausalVaeConfig.norm_eps),
            scaling_factor=settings.get("scaling_factor", CausalVaeConfig.scaling_factor),
            sample_height=settings.get("sample_height", CausalVaeConfig.sample_height),
            sample_width=settings.get("sample_width", CausalVaeConfig.sample_width),
        )
    except KeyError as missing:
        raise IncompleteCheckpointError(
            f"{source} looks like CogVideoX's VAE but lacks {missing}; use a whole file"
        ) from None
    if 2 ** (levels - 1) != SPATIAL_SCALE:
        raise CheckpointError(
            f"{source} has {levels} levels and makes 1 latent of {2 ** (levels - 1)} pixels; DropletVideo's VAE of "
            f"{SPATIAL_SCALE} pixels is needed"
        )
    if odd := [width for width in config.channels if width % config.norm_groups]:
        raise CheckpointError(
            f"{source} has levels of {', '.join(map(str, odd))} channels, which {config.norm_groups} norm groups do "
            "not divide; use it with the config.json that belongs to it"
        )
    _compare(settings, VAE_FIXED, source)
    found = {
        "block_out_channels": list(config.channels),
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
    }
    _compare(settings, found, source)
    return config


def _compare(settings: Settings, found: Settings, source: str) -> None:
    """Raise `CheckpointError` where config.json says other than the weights, or than what the network can do."""
    for name, value in found.items():
        if name in settings and _plain(settings[name]) != value:
            raise CheckpointError(
                f"config.json has {name} {settings[name]!r}, but for {source} it must be {value!r}; "
                "use the config.json that belongs to the weights"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

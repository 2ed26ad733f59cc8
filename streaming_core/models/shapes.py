"""Official key layouts of the towers that several families carry: OpenCLIP image towers and KL autoencoders.

From a configuration to every key and its shape, the way back from `towers.py`. Training makes first weights from them,
benchmarks and tests make tiny files.
"""

from __future__ import annotations

from .towers import ClipVisionConfig, VaeConfig

KeyShapes = dict[str, tuple[int, ...]]
"""Key -> shape."""


def _with_bias(stem: str, *weight: int) -> KeyShapes:
    return {f"{stem}.weight": weight, f"{stem}.bias": weight[:1]}


def openclip_shapes(config: ClipVisionConfig) -> KeyShapes:
    """Keys of an OpenCLIP image tower."""
    width, hidden = config.width, config.mlp_width
    shapes: KeyShapes = {
        "class_embedding": (width,),
        "positional_embedding": ((config.image_px // config.patch_px) ** 2 + 1, width),
        "proj": (width, config.projection_width),
        "conv1.weight": (width, 3, config.patch_px, config.patch_px),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= _with_bias(norm, width)
    layer: KeyShapes = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
    layer |= _with_bias("attn.out_proj", width, width)
    layer |= _with_bias("mlp.c_fc", hidden, width) | _with_bias("mlp.c_proj", width, hidden)
    layer |= _with_bias("ln_1", width) | _with_bias("ln_2", width)
    for index in range(config.layers):
        shapes |= {f"transformer.resblocks.{index}.{key}": shape for key, shape in layer.items()}
    return shapes


def autoencoder_shapes(config: VaeConfig) -> KeyShapes:
    """Keys of a KL autoencoder in the layout of Stable Diffusion checkpoints; a temporal decoder also mixes frames."""
    latents = config.latent_channels
    encoder = {f"encoder.{key}": shape for key, shape in _encoder_shapes(config).items()}
    decoder = {f"decoder.{key}": shape for key, shape in _decoder_shapes(config).items()}
    quant = _with_bias("quant_conv", 2 * latents, 2 * latents, 1, 1)
    return encoder | decoder | quant | _with_bias("post_quant_conv", latents, latents, 1, 1)


def _encoder_shapes(config: VaeConfig) -> KeyShapes:
    channels = config.base_channels
    shapes = _with_bias("conv_in", channels, 3, 3, 3)
    for level, multiplier in enumerate(config.channel_multipliers):
        for block in range(config.num_res_blocks):
            shapes |= _residual(f"down.{level}.block.{block}", channels, config.base_channels * multiplier)
            channels = config.base_channels * multiplier
        if level < len(config.channel_multipliers) - 1:
            shapes |= _with_bias(f"down.{level}.downsample.conv", channels, channels, 3, 3)
    shapes |= _middle(channels) | _with_bias("norm_out", channels)
    return shapes | _with_bias("conv_out", 2 * config.latent_channels, channels, 3, 3)


def _decoder_shapes(config: VaeConfig) -> KeyShapes:
    """Levels count from the finest, which the decoder comes to last."""
    channels, temporal = config.base_channels * config.channel_multipliers[-1], config.temporal
    shapes = _with_bias("conv_in", channels, config.latent_channels, 3, 3) | _middle(channels, temporal)
    for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
        for block in range(config.num_res_blocks + 1):
            shapes |= _residual(f"up.{level}.block.{block}", channels, config.base_channels * multiplier, temporal)
            channels = config.base_channels * multiplier
        if level:
            shapes |= _with_bias(f"up.{level}.upsample.conv", channels, channels, 3, 3)
    shapes |= _with_bias("norm_out", channels) | _with_bias("conv_out", 3, channels, 3, 3)
    return shapes | (_with_bias("conv_out.time_mix_conv", 3, 3, 3, 1, 1) if temporal else {})


def _residual(stem: str, channels: int, out_channels: int, temporal: bool = False) -> KeyShapes:
    shapes = _with_bias(f"{stem}.norm1", channels) | _with_bias(f"{stem}.conv1", out_channels, channels, 3, 3)
    shapes |= _with_bias(f"{stem}.norm2", out_channels)
    shapes |= _with_bias(f"{stem}.conv2", out_channels, out_channels, 3, 3)
    if channels != out_channels:
        shapes |= _with_bias(f"{stem}.nin_shortcut", out_channels, channels, 1, 1)
    if temporal:
        shapes[f"{stem}.mix_factor"] = (1,)
        for layers, conv in (("in_layers", 2), ("out_layers", 3)):
            shapes |= _with_bias(f"{stem}.time_stack.{layers}.0", out_channels)
            shapes |= _with_bias(f"{stem}.time_stack.{layers}.{conv}", out_channels, out_channels, 3, 1, 1)
    return shapes


def _middle(channels: int, temporal: bool = False) -> KeyShapes:
    shapes = _residual("mid.block_1", channels, channels, temporal) | _with_bias("mid.attn_1.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= _with_bias(f"mid.attn_1.{name}", channels, channels, 1, 1)
    return shapes | _residual("mid.block_2", channels, channels, temporal)

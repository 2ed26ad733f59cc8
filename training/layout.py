"""The networks of a StreamingSVD file as training sees them: small configuration, building, first weights, file parts.

Everything is built by the pack's own builders, so what is trained here is what Load StreamingSVD loads. Two things
differ while training and are undone, exactly, when weights are written:

* image latents enter the UNet at unit scale, while the official layout hands them over undivided by 0.18215; the
  factor sits in columns 4..7 of the first convolution (`fold_concat`);
* the VAE's latents have whatever scale training gives them; the official one is a standard deviation of 1 / 0.18215
  (`vae.scaled_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hosting.inprocess import import_host, import_pack
from streaming_core.atomic import atomic_write
from streaming_core.errors import SettingsError
from streaming_core.models.attention import attend
from streaming_core.models.registry import load_strict, shapes_of, take
from streaming_core.models.shapes import openclip_shapes
from streaming_core.models.streamingsvd.config import VideoUNetConfig
from streaming_core.models.streamingsvd.detect import (
    CLIP_VISION_PREFIX,
    FIRST_STAGE_PREFIX,
    IMAGE_ENCODER_PREFIX,
    UNET_PREFIX,
    detect_video_unet,
)
from streaming_core.models.streamingsvd.file import cam_weights, split_vae_weights, unet_weights
from streaming_core.models.towers import ClipVisionConfig, VaeConfig, detect_clip_vision, detect_vae

from .configs import DEMO_SVD

Weights = dict[str, Tensor]
LATENT_SCALE = 0.18215
CPU = torch.device("cpu")
CLIP_SEED = 20
"""Of the random image tower: its embedding only has to differ between images, the UNet learns to read it."""


def host() -> SimpleNamespace:
    """The pack's host rooms `build`, `encoders` and `svd`; imports the host where that has not been done."""
    import_host(cpu=not torch.cuda.is_available())
    import_pack()
    from comfyui_streamingt2v.nodes.host import encoders
    from comfyui_streamingt2v.nodes.host.svd import build, sampler

    return SimpleNamespace(build=build, encoders=encoders, svd=sampler)


def initialize(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """First weights of every layer, in place; the host's classes leave memory as it was.

    Matrices and kernels are uniform with variance 1 / (3 * inputs), norms are the identity, mixes are one half.
    """
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if name.endswith("mix_factor"):
                parameter.zero_()
            elif parameter.ndim < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                bound = 1 / math.sqrt(parameter[0].numel())
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * (2 * bound) - bound)
    return network


def silence(network: nn.Module, *endings: str) -> None:
    """Zero the layers whose names end so: blocks then start as the identity."""
    layers = [layer for name, layer in network.named_modules() if name.endswith(endings)]
    assert layers, endings
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            nn.init.zeros_(parameter)


def build_unet(config: VideoUNetConfig, device: torch.device) -> nn.Module:
    """The host's video UNet, float32, its weights not set."""
    model = host().build.empty_video_unet(config, torch.float32, 1, device="cpu")
    # Newer hosts build it for inference only.
    return model.diffusion_model.float().to(device).requires_grad_(True)


def build_vae(encoder: VaeConfig, decoder: VaeConfig, device: torch.device) -> nn.Module:
    """The pack's autoencoder on the host's classes, float32, its weights not set."""
    return host().build.SplitAutoencoder(encoder, decoder).float().to(device)


def plain_attention(kernel: object, q: Tensor, k: Tensor, v: Tensor, heads: int, **_) -> Tensor:
    """Stands for the host's kernel, which is chosen for inference and need not have a gradient."""
    return attend(q, k, v, heads)


def run_unet(
    unet: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor, frames: int, **patches: list
) -> Tensor:
    """One call of the host's UNet; all of `[batch * frames, ...]`. `patches` are the host's, lists by place."""
    options = {"optimized_attention_override": plain_attention, "patches": patches}
    return unet(x, timesteps, context, vector, transformer_options=options, num_video_frames=frames)


def fold_concat(weights: Mapping[str, Tensor], factor: float, prefix: str = "") -> Weights:
    """The same UNet or CAM encoder for image latents that come `1 / factor` times as large."""
    key = f"{prefix}input_blocks.0.0.weight"
    first = weights[key].clone()
    first[:, 4:8] *= factor
    return {**weights, key: first}


@dataclass(frozen=True)
class Base:
    """A video model before CAM, as in a file: tensors by official key. Each part is read only when asked for."""

    tensors: Weights

    @property
    def unet_config(self) -> VideoUNetConfig:
        return detect_video_unet(shapes_of(self.tensors))

    def unet(self, device: torch.device) -> nn.Module:
        """For image latents at unit scale, in evaluation mode."""
        weights = fold_concat(unet_weights(self.tensors), 1 / LATENT_SCALE)
        network = build_unet(self.unet_config, CPU)
        load_strict(network, floats(weights), "the video UNet")
        return network.to(device).eval()

    def vae(self, device: torch.device) -> nn.Module:
        shapes = shapes_of(self.tensors)
        image, first = detect_vae(shapes, IMAGE_ENCODER_PREFIX), detect_vae(shapes, FIRST_STAGE_PREFIX)
        network = build_vae(image, first, CPU)
        load_strict(network, floats(split_vae_weights(self.tensors)), "the VAE")
        return network.to(device).eval().requires_grad_(False)

    def clip_vision(self) -> Any:
        """The host's CLIP_VISION."""
        config = detect_clip_vision(shapes_of(self.tensors), CLIP_VISION_PREFIX)
        return host().encoders.build_clip_vision(floats(take(self.tensors, CLIP_VISION_PREFIX)), config)


def floats(weights: Mapping[str, Tensor]) -> Weights:
    return {key: tensor.float() for key, tensor in weights.items()}


def random_clip_vision(config: ClipVisionConfig) -> Weights:
    """An image tower of random weights, always the same ones, under the official keys."""
    generator = torch.Generator().manual_seed(CLIP_SEED)
    weights = {}
    for key, shape in sorted(openclip_shapes(config).items()):
        if len(shape) < 2:
            weights[key] = torch.full(shape, 1.0 if key.endswith("weight") else 0.0)
        else:
            weights[key] = torch.randn(shape, generator=generator) / math.sqrt(torch.Size(shape[1:]).numel())
    # The projection is stored as [width, projection], and its inputs are normed: outputs of about unit size.
    return {CLIP_VISION_PREFIX + key: tensor for key, tensor in weights.items()}


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """A safetensors file that is whole or not there."""
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    with atomic_write(path) as temporary:
        save_file(whole, temporary)


def read_stage(folder: Path, stage: str) -> Weights:
    """What an earlier stage wrote; raises `SettingsError` where it has not."""
    path = folder / f"{stage}.safetensors"
    if not path.is_file():
        raise SettingsError(f"{path} is not there yet; run python -m training --stage {stage} --out {folder} first")
    return load_file(path)


def autoencoder_tensors(vae: Mapping[str, Tensor]) -> Weights:
    """Both autoencoders of the official layout from one trained `SplitAutoencoder`.

    The image-conditioning one gets the encoder, and the decoder without its temporal layers; the one with the temporal
    decoder has no `quant_conv`, which therefore goes into its encoder's last convolution.
    """
    encoder = {key: tensor for key, tensor in vae.items() if key.startswith("encoder.")}
    decoder = {key: tensor for key, tensor in vae.items() if key.startswith("decoder.")}
    quant, bias = vae["quant_conv.weight"], vae["quant_conv.bias"]
    last = encoder["encoder.conv_out.weight"]
    joined = {
        **encoder,
        "encoder.conv_out.weight": torch.einsum("oi,ichw->ochw", quant[:, :, 0, 0], last),
        "encoder.conv_out.bias": quant[:, :, 0, 0] @ encoder["encoder.conv_out.bias"] + bias,
    }
    temporal = (".time_stack.", ".mix_factor", ".time_mix_conv.")
    still = {key: tensor for key, tensor in decoder.items() if not any(part in key for part in temporal)}
    channels = decoder["decoder.conv_in.weight"].shape[1]
    image = {
        **encoder,
        **still,
        "quant_conv.weight": quant,
        "quant_conv.bias": bias,
        "post_quant_conv.weight": torch.eye(channels)[:, :, None, None],
        "post_quant_conv.bias": torch.zeros(channels),
    }
    tensors = {FIRST_STAGE_PREFIX + key: tensor.clone() for key, tensor in {**joined, **decoder}.items()}
    return {**tensors, **{IMAGE_ENCODER_PREFIX + key: tensor.clone() for key, tensor in image.items()}}


def vae_base(folder: Path) -> Base:
    """The trained VAE and the image tower: what the UNet trains on."""
    return Base({**autoencoder_tensors(read_stage(folder, "vae")), **random_clip_vision(DEMO_SVD.clip_vision)})


def read_base(folder: Path, file: Path | None = None, with_unet: bool = False) -> Base:
    """What a stage trains on: a whole video model from `file`, or else what earlier stages left in the folder."""
    if file is not None:
        return Base(load_file(file))
    return trained_base(folder) if with_unet else vae_base(folder)


def stage_weights(path: Path, stage: str) -> Weights:
    """Of stage unet or cam: from the `STAGE.safetensors` of a run, or out of a whole StreamingSVD file."""
    tensors = load_file(path)
    if not any(key.startswith(UNET_PREFIX) for key in tensors):
        return tensors
    return floats(unet_weights(tensors) if stage == "unet" else cam_weights(tensors))


def trained_base(folder: Path) -> Base:
    """VAE, image tower and UNet: what CAM trains on."""
    unet = read_stage(folder, "unet")
    return Base({**vae_base(folder).tensors, **{UNET_PREFIX + key: tensor for key, tensor in unet.items()}})

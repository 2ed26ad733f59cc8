"""What every family asks of the host's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as mm
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.sd import VAE
from torch import Tensor, nn

from ...streaming_core.models.registry import compare_keys, shapes_of
from ...streaming_core.models.towers import VaeConfig
from .patchers import managed
from .progress import check_cancel


def autoencoder_params(config: VaeConfig) -> dict[str, Any]:
    """A KL autoencoder in the host's words."""
    return {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def decode_clip(vae: VAE, latents: Tensor) -> Tensor:
    """Decode `[n, 4, h, w]` in one call as one video, whatever memory is free: `[n, 3, H, W]` in [0, 1].

    The host's own `VAE.decode` splits frames by free memory, which changes what a temporal decoder makes of them.
    """
    check_cancel()
    memory = vae.memory_used_decode(latents.shape, vae.vae_dtype) * latents.shape[0]
    mm.load_models_gpu([vae.patcher], memory_required=memory)
    with torch.inference_mode():
        frames = vae.first_stage_model.decode(latents.to(device=vae.device, dtype=vae.vae_dtype))
        return ((frames.float() + 1) / 2).clamp(0, 1).to(vae.output_device)


class NetworkVae(VAE):
    """The host's VAE around a network that the host does not know, which `adopt` gives it."""

    first_stage_model: Any

    def __init__(self) -> None:
        # The host's constructor chooses types and devices, which other constructors do in other ways on each host; the
        # network that it wants meanwhile is a tiny one.
        stand_in = {**autoencoder_params(VaeConfig(32, (1,), 1, 1, temporal=False)), "resolution": 8}
        params = {"ddconfig": stand_in, "embed_dim": 1}
        super().__init__(sd=AutoencoderKL(**params).state_dict(), config={"params": params})
        self.working_dtypes = [torch.bfloat16, torch.float16, torch.float32]
        self.vae_dtype = mm.vae_dtype(self.device, self.working_dtypes)

    def adopt(self, network: nn.Module, tensors: Mapping[str, Tensor], called: str) -> None:
        """Load `tensors` into `network`, strictly. Raises `IncompleteCheckpointError` where they are not its own."""
        compare_keys(shapes_of(network.state_dict()), shapes_of(tensors), called)
        network.load_state_dict(dict(tensors))
        self.first_stage_model = network.requires_grad_(False).eval()
        self.patcher = managed(self.first_stage_model, self.device, mm.vae_offload_device())

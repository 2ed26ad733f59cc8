"""Native video models of the host, small and with random weights, for tests that sample for real.

Import the host first (`hosting.inprocess.import_host`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models as supported
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from torch import Tensor


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Seeded weights everywhere, the zero-initialized layers included; norms stay near one."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(noise * scale + (1 if weight.ndim == 1 and name.endswith("weight") else 0))


def patcher_of(model: torch.nn.Module, seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    randomize(model, seed)
    return comfy.model_patcher.ModelPatcher(model, mm.get_torch_device(), torch.device("cpu"))


def model_of(config_class: type, unet_config: dict[str, Any], seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    config = config_class(unet_config)
    config.set_inference_dtype(torch.float32, None)
    return patcher_of(config.get_model({}, ""), seed)


@dataclass(frozen=True)
class Tiny:
    """A model with what it needs to be sampled. `latent(frames)` has the model's rank, `tokens` is its text width."""

    name: str
    make: Callable[[], object]
    channels: int
    side: int
    tokens: int
    frame_batch: bool = False
    masked_tokens: bool = False

    def latent(self, frames: int) -> Tensor:
        batch = (frames, self.channels) if self.frame_batch else (1, self.channels, frames)
        return torch.zeros(*batch, self.side, self.side)

    @property
    def axis(self) -> int:
        return 0 if self.frame_batch else 2

    def conditioning(self, seed: int = 1, **options) -> list:
        """What the model's own text encoder would give, and `options` with it."""
        generator = torch.Generator("cpu").manual_seed(seed)
        tokens = torch.randn(1, 1 if self.frame_batch else 7, self.tokens, generator=generator)
        extras: dict[str, Any] = {"pooled_output": torch.zeros(1, 8)}
        if self.masked_tokens:
            extras["attention_mask"] = torch.ones(1, tokens.shape[1], dtype=torch.long)
        return [[tokens, {**extras, **options}]]


SVD = Tiny(
    "svd",
    lambda: model_of(
        supported.SVD_img2vid,
        {
            "use_checkpoint": False,
            "image_size": 32,
            "use_spatial_transformer": True,
            "legacy": False,
            "num_classes": "sequential",
            "adm_in_channels": 768,
            "in_channels": 8,
            "out_channels": 4,
            "model_channels": 64,
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 0],
            "transformer_depth_output": [1, 1, 0, 0],
            "channel_mult": [1, 1],
            "transformer_depth_middle": 1,
            "use_linear_in_transformer": True,
            "context_dim": 16,
            "extra_ff_mix_layer": True,
            "use_spatial_context": True,
            "merge_strategy": "learned_with_images",
            "merge_factor": 0.0,
            "video_kernel_size": [3, 1, 1],
            "use_temporal_resblock": True,
            "use_temporal_attention": True,
            "disable_temporal_crossattention": False,
        },
    ),
    channels=4,
    side=8,
    tokens=16,
    frame_batch=True,
)

_WAN = {
    "image_model": "wan2.1",
    "dim": 24,
    "ffn_dim": 32,
    "num_heads": 2,
    "num_layers": 1,
    "patch_size": (1, 2, 2),
    "freq_dim": 16,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "text_dim": 16,
    "out_dim": 16,
}
WAN = Tiny(
    "wan",
    lambda: model_of(supported.WAN21_T2V, {**_WAN, "model_type": "t2v", "in_dim": 16}),
    channels=16,
    side=4,
    tokens=16,
)
WAN_I2V = Tiny(
    "wan_i2v",
    lambda: model_of(supported.WAN21_I2V, {**_WAN, "model_type": "i2v", "in_dim": 36}),
    channels=16,
    side=4,
    tokens=16,
)
WAN_FLF = Tiny(
    "wan_flf",
    lambda: model_of(supported.WAN21_I2V, {**_WAN, "model_type": "i2v", "in_dim": 36, "flf_pos_embed_token_number": 6}),
    channels=16,
    side=4,
    tokens=16,
)
WAN_VACE = Tiny(
    "wan_vace",
    lambda: model_of(
        supported.WAN21_Vace,
        {**_WAN, "model_type": "vace", "in_dim": 16, "vace_layers": 1, "vace_in_dim": 96},
    ),
    channels=16,
    side=4,
    tokens=16,
)
LTX = Tiny(
    "ltx",
    lambda: model_of(
        supported.LTXV,
        {
            "image_model": "ltxv",
            "in_channels": 128,
            "cross_attention_dim": 24,
            "attention_head_dim": 12,
            "num_attention_heads": 2,
            "caption_channels": 16,
            "num_layers": 1,
        },
    ),
    channels=128,
    side=3,
    tokens=16,
    masked_tokens=True,
)
HUNYUAN = Tiny(
    "hunyuan",
    lambda: model_of(
        supported.HunyuanVideo,
        {
            "image_model": "hunyuan_video",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": [1, 2, 2],
            "vec_in_dim": 8,
            "context_in_dim": 16,
            "hidden_size": 32,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [4, 6, 6],
            "theta": 256,
            "qkv_bias": True,
            "guidance_embed": False,
            "byt5": False,
            "meanflow": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
            # Only some hosts ask for it.
            **({"meanflow_sum": False} if "meanflow_sum" in HunyuanVideoParams.__dataclass_fields__ else {}),
        },
    ),
    channels=16,
    side=4,
    tokens=16,
)
COSMOS = Tiny(
    "cosmos",
    lambda: model_of(
        supported.CosmosT2V,
        {
            "image_model": "cosmos",
            "max_img_h": 16,
            "max_img_w": 16,
            "max_frames": 64,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 32,
            "block_config": "FA-CA-MLP",
            "concat_padding_mask": True,
            "pos_emb_cls": "rope3d",
            "pos_emb_learnable": False,
            "pos_emb_interpolation": "crop",
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "use_adaln_lora": True,
            "adaln_lora_dim": 8,
            "crossattn_emb_channels": 16,
            "num_blocks": 1,
            "num_heads": 2,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
            "rope_h_extrapolation_ratio": 1.0,
            "rope_w_extrapolation_ratio": 1.0,
            "rope_t_extrapolation_ratio": 2.0,
        },
    ),
    channels=16,
    side=4,
    tokens=16,
)
ALL = (SVD, WAN, LTX, HUNYUAN, COSMOS)


def sample(
    model,
    latent: Tensor,
    positive: list,
    negative: list,
    *,
    sampler: str = "euler",
    steps: int = 3,
    sigmas: Tensor | None = None,
    seed: int = 5,
    cfg: float = 2.5,
    callback=None,
) -> Tensor:
    """Latents from the host's own sampler, noise drawn from `seed` on the CPU."""
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object(sampler),
        sigmas,
        positive,
        negative,
        latent,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )

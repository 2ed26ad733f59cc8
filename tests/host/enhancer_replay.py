"""The recorded enhancement loop, run by the host: its sampler, its guidance, our model object and context handler."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from hosting.inprocess import import_host, import_pack
from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig
from streaming_core.models.i2vgenxl.network import position_ramp
from streaming_core.schedules.ddim import enhancer_sigmas
from streaming_core.windows.handovers import RecordedHandovers
from tests.golden.cases import Case


def closed_form(x: Tensor, timestep: Tensor, text: Tensor, image_latents: Tensor, image_embeddings: Tensor) -> Tensor:
    """The stand-in network of `blend_stub`: `x` and `image_latents` `[rows, C, F, h, w]`, conditions one per row."""
    rows = (text.mean((1, 2)) + image_embeddings.mean((1, 2))).view(-1, 1, 1, 1, 1)
    time = 0.05 * torch.sin(timestep.float() / 100).view(-1, 1, 1, 1, 1)
    return 0.6 * x + 0.2 * x.mean(2, keepdim=True) + 0.1 * torch.tanh(image_latents) + time + 0.02 * rows


class ClosedForm(nn.Module):
    """`closed_form` with the calling convention of the host's I2VGen-XL network."""

    def __init__(self, config=None, dtype=None, device=None, operations=None):
        super().__init__()
        self.dtype = dtype
        self.unused = nn.Linear(1, 1, dtype=dtype, device=device)

    def forward(self, x, timesteps, context, control, transformer_options, image_latents, image_embeddings, fps):
        rows = context.shape[0]
        x = rearrange(x, "(rows frames) c h w -> rows c frames h w", rows=rows)
        frames = x.shape[2]
        velocity = closed_form(x, timesteps[::frames], context, position_ramp(image_latents, frames), image_embeddings)
        return rearrange(velocity, "rows c frames h w -> (rows frames) c h w")


def host_model(case: Case):
    """MODEL for a `blend_stub` or `blend_unet` case."""
    import_host()
    import_pack()
    from comfyui_streamingt2v.nodes.host import patchers
    from comfyui_streamingt2v.nodes.host.enhance import i2vgenxl

    if "unet_config" in case.meta:
        groups = case.meta["unet_config"]["norm_num_groups"]
        return i2vgenxl.build_i2vgenxl(case.weights(), case.name, norm_groups=groups)
    config = I2VGenXLConfig(cross_attention_dim=case.input("prompt_embeds").shape[-1])
    model = i2vgenxl.empty_i2vgenxl(config, torch.float32, 1, network=ClosedForm)
    return patchers.managed(model, torch.device("cpu"), torch.device("cpu"))


def enhance_on_host(case: Case, sampler: str, model=None) -> Tensor:
    """Final latents `[1, C, F, h, w]` of the recorded loop with the recorded handovers."""
    model = model or host_model(case)
    import comfy.sample
    import comfy.samplers
    from comfyui_streamingt2v.nodes.host.enhance import i2vgenxl
    from comfyui_streamingt2v.nodes.host.windows import blending
    from comfyui_streamingt2v.nodes.host.windows.conditions import with_window_conditions

    meta, scale = case.meta, model.model.latent_format.scale_factor

    def conditioning(row: int) -> list:
        text = case.input("prompt_embeds")[row : row + 1]
        windows = []
        for k in range(meta["chunks"]):
            options = {
                "concat_latent_image": case.input(f"image_latents_{k}")[row : row + 1, :, 0] / scale,
                i2vgenxl.IMAGE_EMBEDDING: case.input(f"image_embeddings_{k}")[row : row + 1],
                i2vgenxl.FPS_CONDITION: int(case.input("fps")[row]),
            }
            windows.append([[text, options]])
        return with_window_conditions([[text, windows[0][0][1]]], windows)

    handovers = RecordedHandovers(tuple(tuple(row) for row in case.input("offsets").tolist()))
    model = blending.with_blending(model, meta["chunk_size"], meta["overlap_size"], handovers)
    latents, noise = (
        rearrange(case.input(name), "b c f h w -> (b f) c h w").clone() for name in ("video_latents", "noise")
    )
    with torch.inference_mode():
        result = comfy.sample.sample_custom(
            model,
            noise,
            meta["guidance_scale"],
            comfy.samplers.sampler_object(sampler),
            enhancer_sigmas(meta["num_inference_steps"], meta["strength"]),
            conditioning(1),
            conditioning(0),
            latents / scale,
            disable_pbar=True,
            seed=0,
        )
    return rearrange(result * scale, "f c h w -> 1 c f h w")

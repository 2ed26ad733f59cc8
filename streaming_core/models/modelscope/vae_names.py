"""A KL autoencoder of the diffusers layout under the names of Stable Diffusion checkpoints, which hosts load."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# Files written by early diffusers versions.
_ATTENTION |= {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}


def stable_diffusion_name(key: str, levels: int) -> str:
    """The name in the Stable Diffusion layout of `key` in the diffusers layout, for `levels` resolutions.

    The two count the levels of the decoder in opposite directions.
    """
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    found = re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)$", key)
    if found:
        return f"{found[1]}.mid.attn_1.{_ATTENTION[found[2]]}.{found[3]}"
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)


def rename_vae(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """`tensors` in the Stable Diffusion layout; the middle attention's projections become 1x1 convolutions."""
    renamed = {stable_diffusion_name(key, levels): tensor for key, tensor in tensors.items()}
    projection = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")
    return {
        key: tensor[..., None, None] if projection.search(key) and tensor.ndim == 2 else tensor
        for key, tensor in renamed.items()
    }

"""APM on the host: an anchor image becomes tokens that travel with the text (reference: streamingmodelscope, 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import comfy.model_management as mm
import comfy.ops
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.modelscope.apm import ImageProjector
from ....streaming_core.models.modelscope.config import ImageProjectorConfig
from ....streaming_core.models.registry import load_strict
from ....streaming_core.models.streamingsvd.conditioning import clip_pixels
from ..encoders import Conditioning, embed_pixels
from ..patchers import managed
from .model import APM_TOKENS, APM_WEIGHT


@dataclass(frozen=True)
class StreamingApm:
    """A STREAMING_APM: the token network under the host's patcher."""

    patcher: ModelPatcher

    @property
    def network(self) -> ImageProjector:
        return self.patcher.model


def build_apm(tensors: Mapping[str, Tensor], config: ImageProjectorConfig) -> StreamingApm:
    """The token network, loaded strictly. It is small and runs once per video, so it always computes in float32."""
    network = ImageProjector(config, operations=comfy.ops.manual_cast, dtype=torch.float32).eval()
    load_strict(network, tensors, "the APM token network")
    return StreamingApm(managed(network, mm.get_torch_device(), mm.unet_offload_device()))


@dataclass(frozen=True)
class AnchorTokens:
    """Image tokens of both guidance rows, `[1, tokens, width]`: of the anchor, and of a gray image."""

    positive: Tensor
    negative: Tensor


def anchor_tokens(clip_vision: ClipVisionModel, apm: StreamingApm, frames: Tensor) -> AnchorTokens:
    """Tokens of one or several anchor frames `[n, 3, H, W]` in [0, 1]; several are averaged.

    The negative row officially sees an image of zeros in [-1, 1], which is mid-gray, and not zero tokens.
    """
    width = apm.network.config.width
    embeddings = [_embed(clip_vision, pixels) for pixels in (frames.float() * 2 - 1, torch.zeros_like(frames[:1]))]
    if embeddings[0].shape[-1] != width:
        raise SettingsError(
            f"the image tower gives embeddings of width {embeddings[0].shape[-1]}, this APM takes {width}; "
            "connect the CLIP_VISION of Load StreamingModelscope"
        )
    # After the tower has run: loading that may have put this network out of the device.
    mm.load_models_gpu([apm.patcher])
    device = apm.patcher.load_device
    with torch.inference_mode():
        rows = [apm.network(rearrange(e, "n c -> 1 n c").to(device)) for e in embeddings]
    return AnchorTokens(*(row.float().to(mm.intermediate_device()) for row in rows))


def _embed(clip_vision: ClipVisionModel, pixels: Tensor) -> Tensor:
    """Pooled and projected embeddings `[n, width]` of images in [-1, 1]."""
    prepared = clip_pixels(pixels, clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std)
    return embed_pixels(clip_vision, prepared)


def with_tokens(conditioning: Conditioning, tokens: Tensor, weight: float = 1.0) -> Conditioning:
    """Every entry of `conditioning` with the anchor added; the given one stays as it is."""
    return [[text, {**entry, APM_TOKENS: tokens, APM_WEIGHT: weight}] for text, entry in conditioning]

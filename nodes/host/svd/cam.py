"""CAM on the host's SVD model: a wrapper around the UNet and a patch in front of its decoder blocks.

The encoder half of the UNet runs unmodified; each skip is replaced by its merged version just before a decoder block
joins it, and the running activation is merged before the first one (reference: streamingsvd, sections 6 and 14).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import comfy.model_management as mm
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from einops import rearrange
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.attention import Compute
from ....streaming_core.models.cam import CamFeatures
from ....streaming_core.models.streamingsvd.network import CamNetwork
from ..cam import (
    ALREADY_ATTACHED,
    PerturbedControl,
    StreamingCam,
    at_strength,
    check_call,
    embedding_at,
    encode_shown,
)
from ..remedies.frames import ShownTail
from ..remedies.guidance import is_blind
from ..windows.beginning import VideoBeginning

KEY = "streamingt2v_cam"


@dataclass(frozen=True)
class CamCall:
    """What one UNet call hands from the wrapper to the patches."""

    features: CamFeatures
    frames: int
    compute: Compute


class CamGuide:
    """The control of one chunk. Holds nothing that changes, so model clones may share it."""

    def __init__(
        self,
        cam: StreamingCam,
        control_embedding: Tensor,
        strength: float = 1.0,
        perturbed: PerturbedControl | None = None,
    ):
        self.cam = cam
        self.control_embedding = control_embedding
        self.strength = strength
        self.perturbed = perturbed

    def __deepcopy__(self, memo: dict[int, Any]) -> CamGuide:
        # Hosts before 0.33 deep-copy model options at every clone.
        return self

    @property
    def network(self) -> CamNetwork:
        return cast(CamNetwork, self.cam.network)

    @property
    def control_frames(self) -> int:
        return self.control_embedding.shape[0]

    @property
    def beginning(self) -> VideoBeginning:
        return VideoBeginning(self.control_frames)

    def around_unet(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        """DIFFUSION_MODEL wrapper: features for whatever part of the batch this call holds, then the call itself."""
        mm.throw_exception_if_processing_interrupted()
        frames = kwargs.get("num_video_frames")
        if frames is None or y is None:
            raise SettingsError(
                "CAM Conditioning needs an SVD video model, and this model does not report a number of frames"
            )
        if is_blind(transformer_options) or not self.beginning.is_in(transformer_options):
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
        embedding = embedding_at(self.control_embedding, self.perturbed, transformer_options)
        check_call(embedding, x, frames)
        compute = Compute(
            attention=partial(
                optimized_attention, attn_precision=torch.float32, transformer_options=transformer_options
            ),
            feed_forward_slices=self._feed_forward_slices(x, frames),
        )

        def head(tensor: Tensor) -> Tensor:
            """The control frames of every video in the batch."""
            clips = rearrange(tensor, "(b t) ... -> b t ...", t=frames)
            return rearrange(clips[:, : self.control_frames], "b k ... -> (b k) ...")

        # CAM computes in a type of its own: another node may have set the model's.
        dtype = self.network.compute_dtype
        features = self.network.controlnet(
            head(x).to(dtype),
            head(timesteps),
            head(context).to(dtype),
            head(y).to(dtype),
            embedding.to(device=x.device, dtype=dtype),
            self.control_frames,
            compute,
        )
        # The decoder calls see all frames of the chunk again.
        call = CamCall(features, frames, replace(compute, feed_forward_slices=1))
        return executor(x, timesteps, context, y, control, {**transformer_options, KEY: call}, **kwargs)

    def merge(self, h: Tensor, skip: Tensor, transformer_options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Output-block patch: merge the skip that the decoder is about to join."""
        call: CamCall | None = transformer_options.get(KEY)
        if call is None:  # a window after the video's beginning, or the call that CAM takes no part in
            return h, skip
        network, block = self.network, transformer_options["block"][1]
        dtype = network.compute_dtype
        if block == 0:
            merged = network.merge_middle(h.to(dtype), call.features, call.frames, call.compute)
            h = at_strength(h, merged.to(h.dtype), self.strength)
        index = len(call.features.skips) - 1 - block
        merged = network.merge_skip(index, skip.to(dtype), call.features, call.frames, call.compute)
        return h, at_strength(skip, merged.to(skip.dtype), self.strength)

    def _feed_forward_slices(self, x: Tensor, frames: int) -> int:
        """As many slices as keep the largest feed-forward within half of the free memory."""
        rows = x.shape[0] // frames * self.control_frames * x.shape[-1] * x.shape[-2]
        wanted = rows * 8 * self.network.config.unet.model_channels * x.element_size()
        return max(1, math.ceil(2 * wanted / max(1, mm.get_free_memory(x.device))))


def check_family(cam: StreamingCam) -> None:
    """Raise `SettingsError` for the CAM of another family."""
    if not isinstance(cam.network, CamNetwork):
        raise SettingsError(
            "this CAM belongs to StreamingModelscope, but the model is StreamingSVD; "
            "connect the STREAMING_CAM of Load StreamingSVD"
        )


def with_cam(
    model: ModelPatcher, cam: StreamingCam, control_frames: Tensor | ShownTail, strength: float = 1.0
) -> ModelPatcher:
    """A clone of `model` that continues `control_frames` (IMAGE `[k, H, W, 3]` in [0, 1]); `model` stays as it is.

    `strength`: how much CAM changes of the model's features, 0 (nothing) to 1 (as trained) and beyond.

    Raises `FrameMismatchError` unless height and width are multiples of 64 (for the released network: eight for the
    VAE, times the UNet's halvings).
    """
    check_family(cam)
    embedding, perturbed = encode_shown(cam, control_frames)
    guide = CamGuide(cam, embedding, strength, perturbed)
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, guide.around_unet)
    patches = clone.model_options["transformer_options"].get("patches", {})
    if any(isinstance(getattr(patch, "__self__", None), CamGuide) for patch in patches.get("output_block_patch", [])):
        raise SettingsError(ALREADY_ATTACHED)
    clone.set_model_output_block_patch(guide.merge)
    guide.beginning.watch(clone, KEY)
    clone.set_additional_models(KEY, [cam.patcher])
    return clone

"""CAM on the host's ModelScope MODEL: a wrapper around the UNet computes the features, the UNet merges them.

The branch sees the first frames of the noisy latent with the pixels of the last finished ones; the pixels are encoded
once per chunk, the text is projected once per run (reference: streamingmodelscope, sections 4.3 and 12).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from einops import rearrange
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.models.modelscope.cam import ModelscopeCam
from ....streaming_core.models.modelscope.unet import Merge
from ..cam import (
    ALREADY_ATTACHED,
    PerturbedControl,
    StreamingCam,
    at_strength,
    check_call,
    embedding_at,
    encode_shown,
)
from ..progress import check_cancel
from ..remedies.frames import ShownTail
from ..remedies.guidance import is_blind
from ..windows.beginning import VideoBeginning
from .model import CAM_ATTACHMENT, MERGE_KEY, ModelscopeModel, compute


@dataclass(frozen=True, eq=False)
class ModelscopeCamGuide:
    """The control of one chunk. Holds nothing that changes, so model clones may share it."""

    cam: StreamingCam
    control_embedding: Tensor
    strength: float = 1.0
    perturbed: PerturbedControl | None = None

    def __deepcopy__(self, memo: dict) -> ModelscopeCamGuide:
        # Hosts before 0.33 deep-copy model options at every clone.
        return self

    @property
    def network(self) -> ModelscopeCam:
        return cast(ModelscopeCam, self.cam.network)

    @property
    def beginning(self) -> VideoBeginning:
        return VideoBeginning(self.control_embedding.shape[0])

    def project_text(self, text: Tensor) -> Tensor:
        """Keys and values of the branch for `text` `[1, tokens, width]`."""
        return self.network.unet.project_context(text.to(self.network.compute_dtype))

    def around_unet(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        control: dict | None,
        transformer_options: dict,
        cam_memory: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """DIFFUSION_MODEL wrapper: features for whatever rows this call holds, then the call itself."""
        check_cancel()
        if cam_memory is None:
            raise SettingsError("CAM Conditioning of StreamingModelscope needs a ModelScope video model")
        if is_blind(transformer_options) or not self.beginning.is_in(transformer_options):
            return executor(x, timesteps, context, control, transformer_options, cam_memory=cam_memory, **kwargs)
        rows = cam_memory.shape[0]
        frames, control_frames = x.shape[0] // rows, self.control_embedding.shape[0]
        embedding = embedding_at(self.control_embedding, self.perturbed, transformer_options)
        check_call(embedding, x, frames)
        dtype = self.network.compute_dtype
        settings = compute(transformer_options)
        clips = rearrange(x, "(b f) c h w -> b f c h w", b=rows)
        features = self.network.unet(
            rearrange(clips[:, :control_frames], "b k c h w -> (b k) c h w").to(dtype),
            timesteps[::frames],
            cam_memory.to(dtype),
            embedding.to(device=x.device, dtype=dtype),
            settings,
        )
        merge = _merge_at_strength(_in_type(self.network.merging(features, frames, settings), dtype), self.strength)
        options = {**transformer_options, MERGE_KEY: merge}
        return executor(x, timesteps, context, control, options, cam_memory=cam_memory, **kwargs)


def _in_type(merge: Merge, dtype: torch.dtype) -> Merge:
    """`merge` computing in `dtype` whatever the UNet computes in: the two may come from different files."""
    return Merge(
        lambda index, h: merge.skip(index, h.to(dtype)).to(h.dtype), lambda h: merge.middle(h.to(dtype)).to(h.dtype)
    )


def _merge_at_strength(merge: Merge, strength: float) -> Merge:
    """`merge` at a strength; the same at 1."""
    if strength == 1:
        return merge
    return Merge(
        lambda index, h: at_strength(h, merge.skip(index, h), strength),
        lambda h: at_strength(h, merge.middle(h), strength),
    )


def check_family(model: ModelPatcher, cam: StreamingCam) -> None:
    """Raise `SettingsError` for a model or a CAM of another family."""
    if not isinstance(cam.network, ModelscopeCam):
        raise SettingsError(
            "this CAM belongs to StreamingSVD, but the model is StreamingModelscope; "
            "connect the STREAMING_CAM of Load StreamingModelscope"
        )
    if not isinstance(model.model, ModelscopeModel):
        raise SettingsError(
            f"this CAM belongs to StreamingModelscope, but the model is {type(model.model).__name__}; "
            "connect the MODEL of Load StreamingModelscope"
        )


def with_modelscope_cam(
    model: ModelPatcher, cam: StreamingCam, control_frames: Tensor | ShownTail, strength: float = 1.0
) -> ModelPatcher:
    """A clone of `model` that continues `control_frames` (IMAGE `[k, H, W, 3]` in [0, 1]); `model` stays as it is.

    `strength`: how much CAM changes of the model's features, 0 (nothing) to 1 (as trained) and beyond.
    """
    check_family(model, cam)
    if model.get_attachment(CAM_ATTACHMENT) is not None:
        raise SettingsError(ALREADY_ATTACHED)
    embedding, perturbed = encode_shown(cam, control_frames)
    guide = ModelscopeCamGuide(cam, embedding, strength, perturbed)
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, CAM_ATTACHMENT, guide.around_unet)
    clone.set_attachments(CAM_ATTACHMENT, guide)
    guide.beginning.watch(clone, CAM_ATTACHMENT)
    clone.set_additional_models(CAM_ATTACHMENT, [cam.patcher])
    return clone

"""What the host's video models get when they fill a gap: both of its ends, as the host's own nodes give them.

* "images" (Wan first/last-frame, image-to-video and Fun InP): gray frames between both ends in the image channels, and
  a mask that tells which frames are known. As *WanFirstLastFrameToVideo* does.
* "control" (Wan VACE): the same as a control video in two parts, known and to be made. As *WanVaceToVideo* does.
* "guides" (LTX-Video): both ends as latents with times of their own, after those of the gap. As *LTXVAddGuide* does.

Other models take a first frame only, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.clip_vision import Output as ClipVisionOutput
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ..encoders import Conditioning, ConditioningPair
from .conditions import WAN, ShownImage, condition_kind, expects_gray, guide_coordinates, set_values

FillKind = Literal["images", "control", "guides"]
_OWN = ("concat_latent_image", "concat_mask", "vace_frames", "vace_mask", "keyframe_idxs", "clip_vision_output")
"""Options of a conditioning that a gap sets."""
_VACE_PX = 8
"""VACE's mask has this many pixels per latent and side, as channels."""


def fill_kind(model: ModelPatcher) -> FillKind | None:
    """How a MODEL takes a last frame besides a first one; None where it does not."""
    kind = condition_kind(model)
    if kind == "guide":
        return "guides"
    if not expects_gray(model):
        return None
    # Wan models differ in what they read of a conditioning, so they are asked with one.
    latent = torch.zeros(1, model.model.latent_format.latent_channels, 2, 4, 4)
    known = torch.ones_like(latent)
    mask = torch.ones(1, 4, 2, 4, 4)
    mask[:, :, 1] = 0
    asked = {"noise": latent, "device": latent.device, "concat_latent_image": known, "concat_mask": mask}
    read = model.model.extra_conds(**asked)
    if "vace_context" in read:
        return "control"
    # Models that are driven by something else as well (Animate, WanDancer) read it in a way of their own.
    kind_of_model: Any = type(model.model)
    plain_kinds: tuple[Any, ...] = WAN
    is_plain = any(kind_of_model.extra_conds is each.extra_conds for each in plain_kinds)
    image = read["c_concat"].cond if "c_concat" in read else latent[:, :0]
    tells_last = image.shape[1] == latent.shape[1] + 4 and bool((image[:, :4, 1] > image[:, :4, 0]).all())
    return "images" if kind == "first_frames" and tells_last and is_plain else None


def refuse_own_frames(positive: Conditioning, negative: Conditioning) -> None:
    """Raise `SettingsError` for conditionings that show the model frames of another length."""
    found = sorted({name for _, options in [*positive, *negative] for name in _OWN if options.get(name) is not None})
    if found:
        raise SettingsError(
            f"the conditioning has {' and '.join(found)} of its own, which a gap sets; connect it without the node "
            "that adds images or frames to it"
        )


@dataclass(frozen=True)
class Ends:
    """Both ends of a gap as IMAGE `[1, H, W, 3]`, and how its `num_frames` frames are encoded.

    `encode`: latents `[1, C, T, h, w]` of an IMAGE batch.
    """

    first: Tensor
    last: Tensor
    num_frames: int
    encode: Callable[[Tensor], Tensor]

    def video(self, unknown: Tensor) -> Tensor:
        """IMAGE frames of the gap, `unknown` `[1, 1, 1, 3]` between its ends."""
        between = unknown.expand(self.num_frames - 2, *self.first.shape[1:])
        return torch.cat([self.first, between.to(self.first), self.last])


def image_values(model: ModelPatcher, ends: Ends, per_latent: int, vision: ClipVisionModel | None) -> dict[str, Any]:
    """Wan's image channels: `per_latent` frames of a latent have a mask channel each, the first one repeated."""
    latent = ends.encode(ends.video(torch.full((1, 1, 1, 3), 0.5)))
    mask = torch.ones(1, 1, latent.shape[2] * per_latent, *latent.shape[-2:])
    mask[:, :, :per_latent] = 0
    mask[:, :, -1:] = 0
    mask = mask.unflatten(2, (latent.shape[2], per_latent)).squeeze(1).transpose(1, 2)
    values: dict[str, Any] = {"concat_latent_image": latent, "concat_mask": mask}
    if vision is not None:
        values["clip_vision_output"] = _seen(model, vision, ends)
    return values


def _seen(model: ModelPatcher, vision: ClipVisionModel, ends: Ends) -> ClipVisionOutput:
    """What CLIP vision sees in the first frame, and in the last where the model has places for two images."""
    first = vision.encode_image(ends.first, crop=False)
    if getattr(getattr(model.model.diffusion_model, "img_emb", None), "emb_pos", None) is None:
        return first
    last = vision.encode_image(ends.last, crop=False)
    both = ClipVisionOutput()
    both.penultimate_hidden_states = torch.cat(
        [first.penultimate_hidden_states, last.penultimate_hidden_states], dim=-2
    )
    return both


def control_values(ends: Ends) -> dict[str, Any]:
    """VACE's control video: half of the channels hold what is known, the others what is to be made, which is gray."""
    gray = torch.full((1, 1, 1, 3), 0.5)
    known = ends.encode(ends.video(gray))
    made = ends.encode(gray.expand(ends.num_frames, *ends.first.shape[1:]).to(ends.first))
    mask = torch.ones(1, 1, ends.num_frames)
    mask[:, :, 0] = mask[:, :, -1] = 0
    mask = torch.nn.functional.interpolate(mask, known.shape[2], mode="nearest-exact")
    mask = mask[..., None, None].expand(1, _VACE_PX**2, -1, *known.shape[-2:]).clone()
    return {"vace_frames": [torch.cat([known, made], dim=1)], "vace_mask": [mask], "vace_strength": [1.0]}


def guide_values(model: ModelPatcher, ends: Ends) -> tuple[dict[str, Any], Tensor]:
    """Where LTX-Video sees both ends, and their latents, to be joined to those of the gap."""
    guides = [ShownImage(image, ends.encode(image)) for image in (ends.first, ends.last)]
    places = [guide_coordinates(model, guide, at) for guide, at in zip(guides, (0, ends.num_frames - 1), strict=True)]
    return {"keyframe_idxs": torch.cat(places, dim=2)}, torch.cat([guide.latent for guide in guides], dim=2)


def with_ends(
    model: ModelPatcher, conds: ConditioningPair, ends: Ends, per_latent: int, vision: ClipVisionModel | None
) -> tuple[ConditioningPair, Tensor | None]:
    """The conditionings of a gap, and latents that are joined to its own, if any."""
    kind, guides = fill_kind(model), None
    if kind == "control":
        values = control_values(ends)
    elif kind == "guides":
        values, guides = guide_values(model, ends)
    else:
        values = image_values(model, ends, per_latent, vision)
    return (set_values(conds[0], **values), set_values(conds[1], **values)), guides

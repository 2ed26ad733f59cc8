"""What the host's video models get besides noise and text: an anchor, a start image, the tail of the chunk before.

Only the conditioning values that the host's own nodes set are used, so every model gets what it was trained for:

* "every_frame" (SVD): the anchor's latent joined to every frame, its CLIP embedding instead of a text.
* "first_frames" (Wan image-to-video, HunyuanVideo 1.5 and image-to-video): an image per latent and a mask that tells
  which are known. The first is the anchor's or the tail's, those after it the tail's.
* "guide" (LTX-Video): the anchor as one more latent with a time of its own, before the chunk.
* "none": the model sees the held latents only; a start image is held as the first latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import comfy.model_base
import torch
from comfy.clip_vision import Output as ClipVisionOutput
from comfy.ldm.lightricks.symmetric_patchifier import latent_to_pixel_coords
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ..compat import classes
from ..encoders import Conditioning, ConditioningPair

IMAGE_CONDITIONS = ("anchor", "tail")
ConditionKind = Literal["every_frame", "first_frames", "guide", "none"]

# No attribute of the host's models says which conditioning values they read, so families are told apart by class. A
# host without one of these classes has no such models; a test notices when a newer host renames one.
LTX_WITH_AUDIO = classes(comfy.model_base, "LTXAV")
LTX = classes(comfy.model_base, "LTXV")
SVD = classes(comfy.model_base, "SVD_img2vid")
WAN = classes(comfy.model_base, "WAN21")
HUNYUAN_FROM_IMAGE = classes(comfy.model_base, "HunyuanVideo15", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V")


def condition_kind(model: ModelPatcher) -> ConditionKind:
    """How a MODEL takes images, see above.

    Raises `SettingsError` for models that make audio along with the image.
    """
    base = model.model
    if isinstance(base, LTX_WITH_AUDIO):
        raise SettingsError("LTX models that make audio are not supported; use an LTX-Video model without audio")
    if isinstance(base, SVD):
        return "every_frame"
    if isinstance(base, LTX):
        return "guide"
    # Not every Wan model has the attribute (WAN22_S2V), and other families have it, too (CogVideoX).
    wan_from_image = isinstance(base, WAN) and getattr(base, "image_to_video", False)
    return "first_frames" if wan_from_image or isinstance(base, HUNYUAN_FROM_IMAGE) else "none"


def expects_gray(model: ModelPatcher) -> bool:
    """Whether gray frames stand for those after an image, as for Wan; for other models zeros in the latent do."""
    return isinstance(model.model, WAN)


@dataclass(frozen=True)
class ShownImage:
    """An anchor or start image as models take it: its latent, what CLIP vision sees in it, and itself as IMAGE.

    `_filled`: latents of the image and what stands for unknown frames after it, by length.
    """

    image: Tensor
    latent: Tensor
    vision: ClipVisionOutput | None = None
    _filled: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def filled(self, num_frames: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Latents of the image followed by gray, as Wan was trained to tell unknown frames."""
        if num_frames not in self._filled:
            gray = self.image.new_full((num_frames - 1, *self.image.shape[1:]), 0.5)
            self._filled.clear()
            self._filled[num_frames] = encode(torch.cat([self.image, gray]))
        return self._filled[num_frames]


def set_values(conditioning: Conditioning, **values: Any) -> Conditioning:
    """The same texts with `values` among their options."""
    return [[text, {**options, **values}] for text, options in conditioning]


def without_guides(conditioning: Conditioning) -> Conditioning:
    """Less the guides of LTX's own nodes, whose latents are not part of this video."""
    dropped = ("keyframe_idxs", "guide_attention_entries", "generated_keyframes")
    return [[text, {k: v for k, v in options.items() if k not in dropped}] for text, options in conditioning]


@dataclass(frozen=True)
class ClipRequest:
    """One model call: `shape` of its latents, `held` latents of the video so far or None, an image and how much of it.

    The image is the anchor, or without held latents the start image.
    """

    shape: tuple[int, ...]
    num_frames: int
    held: Tensor | None
    image: ShownImage | None
    strength: float = 1.0

    @property
    def shown(self) -> ShownImage | None:
        """The image, where any of it counts."""
        return self.image if self.strength > 0 else None


def every_frame(positive: Conditioning, negative: Conditioning, request: ClipRequest) -> ConditioningPair:
    """SVD: the image's latent joined to each frame, its embedding as text, zeros in the negative half."""
    shown = request.shown
    if shown is None:
        return positive, negative
    latent = shown.latent * request.strength
    if shown.vision is not None:
        embedding = shown.vision.image_embeds.float().reshape(1, 1, -1)
        positive = [[embedding, options] for _, options in positive]
        negative = [[torch.zeros_like(embedding), options] for _, options in negative]
    return (
        set_values(positive, concat_latent_image=latent),
        set_values(negative, concat_latent_image=torch.zeros_like(latent)),
    )


def first_frames(
    positive: Conditioning,
    negative: Conditioning,
    request: ClipRequest,
    image_condition: str,
    encode_gray: Callable[[Tensor], Tensor] | None,
) -> ConditioningPair:
    """Wan and Hunyuan image-to-video: known latents at the beginning, a mask, and CLIP vision of the image.

    `encode_gray`: encodes what stands for unknown frames; None where zeros do.
    """
    shown = request.shown
    held = 0 if request.held is None else request.held.shape[2]
    # A single held latent stays: without it in the condition the chunk would begin elsewhere.
    from_image = shown is not None and (not held or (image_condition == "anchor" and held > 1))
    if not held and shown is None:
        return positive, negative
    if encode_gray is not None and request.image is not None:
        image = request.image.filled(request.num_frames, encode_gray).clone()
    else:
        image = torch.zeros(request.shape)
        if shown is not None:
            image[:, :, :1] = shown.latent
    first = 1 if from_image else 0
    if request.held is not None and held > first:
        image[:, :, first:held] = request.held[:, :, first:]
    mask = torch.ones(1, 1, *request.shape[2:])
    mask[:, :, : max(held, first)] = 0
    values: dict[str, Any] = {"concat_latent_image": image, "concat_mask": mask}
    if shown is not None and shown.vision is not None:
        values["clip_vision_output"] = shown.vision
    return set_values(positive, **values), set_values(negative, **values)


def guide_coordinates(model: ModelPatcher, image: ShownImage, frame: int | None = None) -> Tensor:
    """Where LTX-Video sees a guide, in the coordinates of the host's own model: at a frame of the chunk.

    None: one latent before the chunk.
    """
    network = model.model.diffusion_model
    _, coordinates = network.patchifier.patchify(image.latent)
    places = latent_to_pixel_coords(coordinates, network.vae_scale_factors, causal_fix=True)
    places[:, 0] += -network.vae_scale_factors[0] if frame is None else frame
    return places

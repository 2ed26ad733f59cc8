"""What the host's video models are told besides noise and text: an anchor, a start image, the tail of the chunk before.

Only the conditioning values that the host's own nodes set are used, so every model gets what it was trained for:

* "every_frame" (SVD): the anchor's latent beside every frame, its CLIP embedding instead of a text.
* "first_frames" (Wan image-to-video, HunyuanVideo 1.5 and image-to-video): an image per latent and a mask that tells
  which are known. The first is the anchor's or the tail's, those after it the tail's.
* "guide" (LTX-Video): the anchor as one more latent with a time of its own, before the clip.
* "none": the model sees the held latents only; a start image is held as the first latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.lightricks.symmetric_patchifier import latent_to_pixel_coords
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ..encoders import Conditioning

IMAGE_CONDITIONS = ("anchor", "tail")


def condition_kind(model) -> str:
    """How a MODEL takes images, see above.

    Raises `SettingsError` for models that make audio along with the image.
    """
    base = model.model
    names = {kind.__name__ for kind in type(base).__mro__}
    if "LTXAV" in names:
        raise SettingsError("LTX models that make audio are not supported; use an LTX-Video model without audio")
    if "SVD_img2vid" in names:
        return "every_frame"
    if "LTXV" in names:
        return "guide"
    if names & {"HunyuanVideo15", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"}:
        return "first_frames"
    if "WAN21" in names and getattr(base, "image_to_video", False):
        return "first_frames"
    return "none"


@dataclass(frozen=True)
class ShownImage:
    """An anchor or start image as models take it: its latent, what CLIP vision sees in it, and itself as IMAGE.

    `latent` is None where the model has no use for it. `_filled`: latents of the image and what stands for unknown
    frames behind it, by length.
    """

    image: Tensor
    latent: Tensor | None
    vision: Any = None
    _filled: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def filled(self, num_frames: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Latents of the image followed by gray, as Wan was trained to tell unknown frames."""
        if num_frames not in self._filled:
            gray = self.image.new_full((num_frames - 1, *self.image.shape[1:]), 0.5)
            self._filled.clear()
            self._filled[num_frames] = encode(torch.cat([self.image, gray]))
        return self._filled[num_frames]


def set_values(conditioning: Conditioning, **values) -> Conditioning:
    """The same texts with `values` beside them."""
    return [[text, {**beside, **values}] for text, beside in conditioning]


def without_guides(conditioning: Conditioning) -> Conditioning:
    """Less the guides of LTX's own nodes, whose latents are not part of this video."""
    dropped = ("keyframe_idxs", "guide_attention_entries", "generated_keyframes")
    return [[text, {k: v for k, v in beside.items() if k not in dropped}] for text, beside in conditioning]


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
    def has_image(self) -> bool:
        return self.image is not None and self.strength > 0


def every_frame(positive, negative, request: ClipRequest):
    """SVD: the image's latent beside each frame, its embedding as text, zeros in the negative half."""
    if not request.has_image:
        return positive, negative
    latent = request.image.latent * request.strength
    if request.image.vision is not None:
        embedding = request.image.vision.image_embeds.float().reshape(1, 1, -1)
        positive = [[embedding, beside] for _, beside in positive]
        negative = [[torch.zeros_like(embedding), beside] for _, beside in negative]
    return (
        set_values(positive, concat_latent_image=latent),
        set_values(negative, concat_latent_image=torch.zeros_like(latent)),
    )


def first_frames(positive, negative, request: ClipRequest, image_condition: str, gray: Callable | None):
    """Wan and Hunyuan image-to-video: known latents at the beginning, a mask, and CLIP vision of the image.

    `gray`: encodes what stands for unknown frames; None where zeros do.
    """
    held = 0 if request.held is None else request.held.shape[2]
    # A single held latent stays: without it in the condition the clip would begin elsewhere.
    from_image = request.has_image and (not held or (image_condition == "anchor" and held > 1))
    if not held and not request.has_image:
        return positive, negative
    if gray is not None and request.image is not None:
        image = request.image.filled(request.num_frames, gray).clone()
    else:
        image = torch.zeros(request.shape)
        if request.has_image:
            image[:, :, :1] = request.image.latent
    first = 1 if from_image else 0
    if held > first:
        image[:, :, first:held] = request.held[:, :, first:]
    mask = torch.ones(1, 1, *request.shape[2:])
    mask[:, :, : max(held, first)] = 0
    values = {"concat_latent_image": image, "concat_mask": mask}
    if request.has_image and request.image.vision is not None:
        values["clip_vision_output"] = request.image.vision
    return set_values(positive, **values), set_values(negative, **values)


def guide_coordinates(model, image: ShownImage) -> Tensor:
    """Where LTX-Video sees a guide: one latent before the clip, in the coordinates of the host's own model."""
    network = model.model.diffusion_model
    _, coordinates = network.patchifier.patchify(image.latent)
    places = latent_to_pixel_coords(coordinates, network.vae_scale_factors, causal_fix=True)
    places[:, 0] -= network.vae_scale_factors[0]
    return places

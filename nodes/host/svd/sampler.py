"""SVD on the host: anchor conditioning, sampling, decoding, and the chunk sampler of StreamingSVD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_base import SVD_img2vid
from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy.sd import VAE
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.decoding import Grouping, decode_all
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.sampler import Progress, Size, StepMemory
from ....streaming_core.loop.state import Anchor, ChunkResult
from ....streaming_core.models.streamingsvd.conditioning import (
    AugmentationNoise,
    augment,
    augmentation_noise,
    clip_pixels,
    guide,
    linear_guidance,
)
from ....streaming_core.schedules.svd import align_your_steps_sigmas, karras_sigmas
from ..cam import StreamingCam
from ..encoders import ConditioningPair, embed_pixels
from ..patchers import step_memory
from ..pixels import core_to_images
from ..progress import check_cancel
from ..remedies.frames import FrameRemedies
from ..remedies.guidance import without_cam
from ..vae import decode_clip
from ..windows.beginning import check_chunks
from .cam import check_family, with_cam

PREPROCESSINGS = ("official", "comfyui")


def embed_image(clip_vision: ClipVisionModel, frame: Tensor, preprocessing: str = "official") -> Tensor:
    """CLIP embedding `[1, 1, width]` of one frame `[1, 3, H, W]` in [0, 1].

    "official" resizes as StreamingSVD does (whole image, blurred before shrinking); "comfyui" as the host's own nodes
    do, but without their crop.
    """
    check_cancel()
    if preprocessing == "comfyui":
        embedding = clip_vision.encode_image(core_to_images(frame), crop=False).image_embeds
    elif preprocessing == "official":
        pixels = clip_pixels(
            frame.float() * 2 - 1, clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std
        )
        embedding = embed_pixels(clip_vision, pixels)
    else:
        raise SettingsError(f"preprocessing is one of {', '.join(PREPROCESSINGS)}, got {preprocessing!r}")
    return embedding.to(mm.intermediate_device()).float().unsqueeze(1)


@dataclass(frozen=True)
class MotionSettings:
    """What SVD gets in its vector: playback rate in frames per second, motion bucket, noise on the anchor."""

    fps: int = 7
    motion_bucket_id: int = 127
    augmentation_level: float = 0.02
    augmentation_noise: AugmentationNoise = "gaussian"


def image_conditioning(
    vae: VAE, frame: Tensor, embedding: Tensor, noise: Tensor, motion: MotionSettings
) -> ConditioningPair:
    """Positive and negative CONDITIONING of SVD for `frame` `[1, 3, H, W]` in [0, 1].

    `noise` `[1, 3, H, W]` is added at `motion.augmentation_level` on the scale of [-1, 1]. The image latent is not
    scaled; the negative half has zeros for embedding and image and the same vector (reference: streamingsvd, 7).
    """
    # The host maps [0, 1] to [-1, 1] when it encodes, so the level is halved here.
    pixels = augment(frame, motion.augmentation_level / 2, noise.to(frame))
    latent = vae.encode(core_to_images(pixels))
    vector = {
        "fps": motion.fps,
        "motion_bucket_id": motion.motion_bucket_id,
        "augmentation_level": motion.augmentation_level,
    }
    positive = [[embedding, {**vector, "concat_latent_image": latent}]]
    negative = [[torch.zeros_like(embedding), {**vector, "concat_latent_image": torch.zeros_like(latent)}]]
    return positive, negative


def with_linear_guidance(model: ModelPatcher, min_cfg: float) -> ModelPatcher:
    """A clone of `model` whose guidance rises over the frames from `min_cfg` to the sampler's cfg.

    What other nodes made of the guidance stays: a function in place of the host's own is asked for every frame with
    that frame's cfg, and what works on the guided result gets ours.
    """
    clone = model.clone()
    theirs = clone.model_options.get("sampler_cfg_function")

    def per_frame(args: dict[str, Any]) -> Tensor:
        scale = linear_guidance(min_cfg, args["cond_scale"], args["cond_denoised"].shape[0])
        return guide(args["uncond_denoised"], args["cond_denoised"], scale)

    def per_frame_by_theirs(args):
        frames = args["cond"].shape[0]
        scale = linear_guidance(min_cfg, args["cond_scale"], frames).flatten().tolist()
        guided = [theirs({**_of_frame(args, index, frames), "cond_scale": scale[index]}) for index in range(frames)]
        return torch.cat(guided)

    # At cfg 1 the host would skip the negative half, which frames below cfg still need.
    if theirs is not None:
        clone.set_model_sampler_cfg_function(per_frame_by_theirs, disable_cfg1_optimization=True)
        return clone
    # Behind the host's own guidance, not in place of it: that one works on x - denoised, which at sigma 700 costs
    # four digits. Before all others, which work on what they are given.
    clone.set_model_sampler_post_cfg_function(per_frame, disable_cfg1_optimization=True)
    functions = clone.model_options["sampler_post_cfg_function"]
    clone.model_options["sampler_post_cfg_function"] = [functions[-1], *functions[:-1]]
    return clone


def _of_frame(args: dict[str, Any], index: int, frames: int) -> dict[str, Any]:
    """What a guidance function receives, for one frame of a chunk whose frames are the batch."""
    return {
        name: value[index : index + 1] if isinstance(value, Tensor) and value.shape[:1] == (frames,) else value
        for name, value in args.items()
    }


@dataclass(frozen=True)
class SamplingSettings:
    """How one chunk is sampled: SAMPLER, SIGMAS and guidance from `min_cfg` at the first frame to `cfg` at the last."""

    sampler: Sampler
    sigmas: Tensor
    cfg: float
    min_cfg: float

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def default_sampling() -> SamplingSettings:
    """The official continuation: 30 Euler steps on Align-Your-Steps sigmas, guidance 1.5 to 3."""
    return SamplingSettings(comfy.samplers.sampler_object("euler"), align_your_steps_sigmas(30).float(), 3.0, 1.5)


def default_first_sampling() -> SamplingSettings:
    """The official first chunk: 25 Euler steps on Karras sigmas, guidance 1 to 3."""
    return SamplingSettings(comfy.samplers.sampler_object("euler"), karras_sigmas(25), 3.0, 1.0)


def sample_clip(
    model: ModelPatcher,
    settings: SamplingSettings,
    conds: ConditioningPair,
    noise: Tensor,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """Sample one chunk from unit `noise` `[F, 4, h, w]`; latents as the host's VAE takes them."""
    positive, negative = conds
    if not settings.cfg == settings.min_cfg == 1:  # else no frame needs the negative half, and the host leaves it out
        model = with_linear_guidance(model, settings.min_cfg)
    return comfy.sample.sample_custom(
        model,
        noise,
        settings.cfg,
        settings.sampler,
        settings.sigmas.clone(),  # uni_pc writes into it
        positive,
        negative,
        torch.zeros_like(noise),
        callback=progress.sampler_callback(model) if progress else None,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


@dataclass(frozen=True)
class ChunkNoise:
    """All random numbers of one chunk: for the anchor's augmentation, for the latents, and a seed for the sampler."""

    augmentation: Tensor
    latent: Tensor
    sampler_seed: int


def draw_noise(
    chunk: Chunk, image_shape: tuple[int, ...], latent_shape: tuple[int, ...], distribution: AugmentationNoise
) -> ChunkNoise:
    """Draw a chunk's noise on the CPU, in the official order: augmentation first, then latents."""
    generator = chunk.generator()
    augmentation = augmentation_noise(image_shape, distribution, generator)
    latent = torch.randn(latent_shape, generator=generator)
    return ChunkNoise(augmentation, latent, int(torch.randint(2**62, (), generator=generator)))


@dataclass(frozen=True)
class SvdChunkSampler(FrameRemedies):
    """StreamingSVD in the chunk loop; its tail is frames, which CAM continues.

    `model` continues with CAM; `first_model` makes the first chunk. `embed` and `noise` take the place of CLIP vision
    and the seeded generator where recorded values are replayed.
    """

    model: ModelPatcher
    cam: StreamingCam
    vae: VAE
    clip_vision: ClipVisionModel
    first_model: ModelPatcher
    motion: MotionSettings = MotionSettings()
    sampling: SamplingSettings = field(default_factory=default_sampling)
    first_sampling: SamplingSettings = field(default_factory=default_first_sampling)
    grouping: Grouping = "overlapping"
    preprocessing: str = "official"
    embed: Callable[[Tensor], Tensor] | None = None
    noise: Callable[..., ChunkNoise] | None = None
    progress: Progress | None = None

    family = "streamingsvd"
    follows = frozenset({"cam_strength"})
    decoded_together = 8
    """Frames of one call of the temporal decoder."""

    @property
    def size_multiple(self) -> int:
        return self.cam.config.unet.multiple_px

    def accept(self, plan: VideoPlan) -> VideoPlan:
        for model in (self.model, self.first_model):
            if not isinstance(model.model, SVD_img2vid):
                raise SettingsError(
                    f"StreamingSVD Chunk Sampler needs an SVD video model, got {type(model.model).__name__}; connect "
                    "the model of Load StreamingSVD, or use the chunk sampler of that model's family"
                )
        check_family(self.cam)
        plan = super().accept(plan)
        check_chunks(self.model, plan)
        return plan

    def identity(self) -> dict[str, Any]:
        return self.other_fields_identity("progress")

    def chunk_identity(self, chunk: Chunk) -> Mapping[str, Any]:
        if not chunk.index:  # the first chunk has no CAM
            return {}
        return {**super().chunk_identity(chunk), **self.guidance_identity(chunk)}

    def remedied(self) -> tuple[ModelPatcher, Tensor]:
        return self.model, self.sampling.sigmas

    def with_progress(self, progress: Progress) -> SvdChunkSampler:
        return replace(self, progress=progress)

    def steps(self, chunk: Chunk) -> int:
        return (self.sampling if chunk.index else self.first_sampling).steps

    def networks(self) -> tuple[ModelPatcher, ...]:
        return self.model, self.first_model, self.cam.patcher, self.vae.patcher, self.clip_vision.patcher

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory:
        shape = self._latent_shape(chunk, *size)
        return step_memory(self.model, shape, self.vae, self.decoded_together, (self.model, self.cam.patcher))

    def embed_anchor(self, frame: Tensor) -> Tensor:
        if self.embed is not None:
            return self.embed(frame)
        return embed_image(self.clip_vision, frame, self.preprocessing)

    def _latent_shape(self, chunk: Chunk, height: int, width: int) -> tuple[int, ...]:
        """Shape of a chunk's latents `[F, C, h, w]` for frames of that size."""
        return chunk.num_frames, self.vae.latent_channels, height // 8, width // 8

    def _condition(self, chunk: Chunk, anchor: Anchor) -> tuple[ConditioningPair, ChunkNoise]:
        """Conditioning and latent noise of a chunk."""
        latent_shape = self._latent_shape(chunk, *anchor.frame.shape[-2:])
        draw = self.noise or draw_noise
        noise = draw(chunk, tuple(anchor.frame.shape), latent_shape, self.motion.augmentation_noise)
        conds = image_conditioning(self.vae, anchor.frame, anchor.embedding, noise.augmentation, self.motion)
        return conds, noise

    def first_chunk(self, chunk: Chunk, size: Size, image: Tensor | None) -> ChunkResult:
        if image is None:
            raise SettingsError("StreamingSVD makes the first chunk from an image; connect start_image or start_frames")
        conds, noise = self._condition(chunk, Anchor(image, self.embed_anchor(image)))
        latents = sample_clip(
            self.first_model, self.first_sampling, conds, noise.latent, noise.sampler_seed, self.progress
        )
        return ChunkResult(self._decode(latents, 0), latents)

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        conds, noise = self._condition(chunk, anchor)
        model = with_cam(self.model, self.cam, self.shown(chunk, tail), chunk.cam_strength)
        model = self.guided(model, chunk, without_cam)
        return sample_clip(model, self.sampling, conds, noise.latent, noise.sampler_seed, self.progress)

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        return self._decode(latents, chunk.overlap_frames)

    def _decode(self, latents: Tensor, first: int) -> Tensor:
        return decode_all(latents, first, self.grouping, lambda group: decode_clip(self.vae, group))

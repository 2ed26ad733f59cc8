"""Any of the host's video models as the chunk loop sees it: the latent tail is held by a denoise mask.

Nothing is decoded and encoded again at joins. The held latents of a chunk are those of the chunk before, bit for bit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy.sd import CLIP, VAE
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.decoding import decode_all
from ....streaming_core.loop.latent_layout import LatentLayout, decode_clip, held_mask, perturb
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.refusals import cannot_fill
from ....streaming_core.loop.remedies import Perturbation, PreviousGuidance
from ....streaming_core.loop.sampler import ChunkSampler, Progress, Size, StepMemory
from ....streaming_core.loop.state import Anchor, ChunkResult
from ..encoders import Conditioning, ConditioningPair, encode_prompt
from ..identity import conditioning_identity, fields_identity
from ..patchers import check_model, step_memory
from ..pixels import core_to_images, images_to_core
from ..progress import check_cancel
from ..remedies.steps import SigmaRange, check_steps
from ..vae import decode_clip as decode_frame_batch
from .conditions import (
    ClipRequest,
    ConditionKind,
    ShownImage,
    condition_kind,
    every_frame,
    expects_gray,
    first_frames,
    guide_coordinates,
    set_values,
    without_guides,
)
from .filling import Ends, fill_kind, refuse_own_frames, with_ends
from .guider import ChunkGuider
from .layout import latent_layout, patch_px, pixels_per_latent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeNoise:
    """All random numbers of one chunk: unit noise of its latents, of the held ones twice, a seed for the sampler."""

    latent: Tensor
    sampler_seed: int
    perturbation: Tensor
    unknown: Tensor


def draw_noise(chunk: Chunk, shape: tuple[int, ...], layout: LatentLayout, held: int) -> NativeNoise:
    """Draw a chunk's noise on the CPU; options that are off change nothing of the rest."""
    generator = chunk.generator()
    latent = torch.randn(shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    part = list(shape)
    part[layout.axis] = held
    perturbation, unknown = (torch.randn(part, generator=generator) for _ in range(2))
    return NativeNoise(latent, seed, perturbation, unknown)


@dataclass(frozen=True)
class AnyModelChunkSampler(ChunkSampler):
    """A MODEL of the host in the chunk loop. Its tail is latents.

    `clip` encodes the prompts of a plan, `clip_vision` shows the anchor to models that were trained with it.
    `held_noise`: noise on the held latents that the model sees, as a share of their size; the video keeps the clean
    ones. `image_condition`: what models with an image per latent are shown first, "anchor" or "tail". In chunk 0 an
    image that is held as the first latent counts as the tail.
    """

    model: ModelPatcher
    vae: VAE
    positive: Conditioning
    negative: Conditioning
    sampler: Sampler
    sigmas: Tensor
    cfg: float
    clip: CLIP | None = None
    clip_vision: ClipVisionModel | None = None
    held_noise: Perturbation = Perturbation()
    image_condition: str = "anchor"
    previous_guidance: PreviousGuidance = PreviousGuidance()
    progress: Progress | None = None
    _encoded: dict[str, Conditioning] = field(default_factory=dict, repr=False, compare=False)

    family = "any_model"
    starts_from = frozenset({"prompt", "image", "frames"})
    follows = frozenset({"prompt", "anchor_strength"})

    @property
    def layout(self) -> LatentLayout:
        return latent_layout(self.model, self.vae)

    @property
    def size_multiple(self) -> int:
        return pixels_per_latent(self.vae) * patch_px(self.model)

    def fit(self, chunk_frames: int, overlap_frames: int) -> tuple[int, int]:
        fitted = self.layout.fit(chunk_frames, overlap_frames)
        if fitted != (chunk_frames, overlap_frames):
            log.info(
                "this model makes chunks of %s: using %d frames with an overlap of %d instead of %d and %d",
                *(self.layout.words, *fitted, chunk_frames, overlap_frames),
            )
        return fitted

    def accept(self, plan: VideoPlan) -> VideoPlan:
        check_model(self.model)
        check_steps(self.model, self.sigmas, self.held_noise, self.previous_guidance)
        return super().accept(plan)

    def identity(self) -> dict[str, Any]:
        remedies = {"held_noise": self.held_noise, "previous_guidance": self.previous_guidance}
        rest = fields_identity(self, "clip", "progress", *remedies)
        return rest | {
            name: each.amount if each.is_constant else each.identity("amount") for name, each in remedies.items()
        }

    def chunk_identity(self, chunk: Chunk) -> dict[str, Any]:
        prompt = {}
        if chunk.prompt is not None:
            prompt = {"prompt": chunk.prompt, "positive": conditioning_identity(self._prompt(chunk))}
        return {**prompt, **chunk.cues("anchor_strength")} if chunk.index else prompt

    def with_progress(self, progress: Progress) -> AnyModelChunkSampler:
        return replace(self, progress=progress)

    def with_perturbed_tail(self, perturbation: Perturbation) -> AnyModelChunkSampler:
        return replace(self, held_noise=perturbation)

    def with_previous_guidance(self, guidance: PreviousGuidance) -> AnyModelChunkSampler:
        return replace(self, previous_guidance=guidance)

    def blind_calls(self, chunk: Chunk) -> int:
        if not chunk.index or not self.previous_guidance.at(chunk.index):
            return 0
        return SigmaRange.of(self.model, self.previous_guidance).count(self.sigmas)

    def steps(self, chunk: Chunk) -> int:
        return len(self.sigmas) - 1

    def networks(self) -> tuple[ModelPatcher, ...]:
        vision = () if self.clip_vision is None else (self.clip_vision.patcher,)
        return self.model, self.vae.patcher, *vision

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory:
        shape = self._shape(self.layout.latents(chunk.num_frames), *size)
        return step_memory(self.model, shape, self.vae, 1, (self.model,))

    def embed_anchor(self, frame: Tensor) -> ShownImage | None:
        check_cancel()
        if condition_kind(self.model) == "none":
            return None
        image = core_to_images(frame)
        latent = self.encode(image)
        vision = None if self.clip_vision is None else self.clip_vision.encode_image(image, crop=False)
        return ShownImage(image, latent, vision)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of IMAGE frames, in the model's layout."""
        return self.vae.encode(images).float()

    # The loop

    def first_chunk(self, chunk: Chunk, size: Size, image: Tensor | None) -> ChunkResult:
        layout = self.layout
        shape = self._shape(layout.latents(chunk.num_frames), *size)
        held, shown = None, None
        if image is not None:
            if condition_kind(self.model) not in ("none", "guide"):
                shown = self.embed_anchor(image)
            elif layout.axis == 2:
                # A model that holds the image as its first latent needs no guide besides.
                held = self.encode(core_to_images(image))
        latents = self._sample(chunk, shape, held, shown)
        return ChunkResult(self._decode(latents, 0), latents)

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        layout = self.layout
        held = layout.last(tail, layout.latents(chunk.overlap_frames))
        shape = list(held.shape)
        shape[layout.axis] = layout.latents(chunk.num_frames)
        sampled = self._sample(chunk, tuple(shape), held, anchor.embedding)
        return torch.cat([held, layout.after(sampled, held.shape[layout.axis])], dim=layout.axis)

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        layout = self.layout
        new = layout.after(latents, layout.latents(chunk.overlap_frames))
        return self._decode(torch.cat([tail, new], dim=layout.axis), tail.shape[layout.axis])

    def _decode(self, latents: Tensor, known: int) -> Tensor:
        layout = self.layout
        if layout.axis == 0:
            return decode_all(latents, known, "overlapping", lambda group: decode_frame_batch(self.vae, group))

        def decode_group(group: Tensor) -> Tensor:
            check_cancel()
            images = self.vae.decode(group)
            return images.reshape(-1, *images.shape[-3:])[..., :3].float()

        return images_to_core(torch.cat(list(decode_clip(layout, latents, known, decode_group))))

    def hand_off(self, plan: VideoPlan, tail: Tensor | None, result: ChunkResult) -> Tensor:
        """The last latents of the video: those that the next chunk holds, and before them some for the decoder."""
        layout = self.layout
        held = layout.latents(plan.overlap_frames)
        keep = max(held, layout.context)
        if result.latents is None:
            frames = result.frames
            count = layout.valid_below(min(frames.shape[0], layout.frames(keep)))
            log.info("the last %d of %d frames are encoded; all further ones stay latents", count, len(frames))
            return layout.last(self.encode(core_to_images(frames[-count:])), keep)
        if tail is None:
            return layout.last(result.latents, keep)
        return layout.last(torch.cat([tail, layout.after(result.latents, held)], dim=layout.axis), keep)

    # Gaps

    @property
    def fills(self) -> bool:  # type: ignore[override]
        return fill_kind(self.model) is not None

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        check_model(self.model)
        super().accept_gap(chunk, size)
        refuse_own_frames(self.positive, self.negative)
        for name in ("held_noise", "previous_guidance"):
            if getattr(self, name).is_on:
                raise SettingsError(
                    f"{name} has no effect between two keyframes; connect an Any Model Chunk Sampler with {name} 0"
                )

    def fit_gap(self, num_frames: int) -> int:
        step = self.layout.frames_per_latent
        return 1 + max(1, -(-(num_frames - 1) // step)) * step

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        if not self.fills:
            raise cannot_fill(self.family)
        layout = self.layout
        shape = self._shape(layout.latents(chunk.num_frames), *first.shape[-2:])
        ends = Ends(core_to_images(first), core_to_images(last), chunk.num_frames, self.encode)
        conds = self._prompt(chunk), self.negative
        conds, guides = with_ends(self.model, conds, ends, layout.frames_per_latent, self.clip_vision)
        noise = draw_noise(chunk, shape, layout, 0)
        latent, mask, unit = torch.zeros(shape), None, noise.latent
        if guides is not None:
            latent, unit = torch.cat([latent, guides], dim=2), torch.cat([unit, torch.zeros_like(guides)], dim=2)
            mask = held_mask(layout, latent.shape[2], guides.shape[2]).flip(2)
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(*conds)
        guider.set_cfg(self.cfg)
        return self._decode(self._run(guider, unit, latent, mask, noise.sampler_seed, shape), 0)

    # Sampling

    def _shape(self, count: int, height: int, width: int) -> tuple[int, ...]:
        size = height // pixels_per_latent(self.vae), width // pixels_per_latent(self.vae)
        channels = self.vae.latent_channels
        return (count, channels, *size) if self.layout.axis == 0 else (1, channels, count, *size)

    def _prompt(self, chunk: Chunk) -> Conditioning:
        """The positive conditioning of a chunk: the plan's prompt with the options of the connected one."""
        if chunk.prompt is None:
            return self.positive
        if self.clip is None:
            raise SettingsError("the plan has prompts; connect clip to Any Model Chunk Sampler, which encodes them")
        if chunk.prompt not in self._encoded:
            connected = self.positive[0][1] if self.positive else {}
            encoded = encode_prompt(self.clip, chunk.prompt)
            self._encoded[chunk.prompt] = [[text, {**connected, **options}] for text, options in encoded]
        return self._encoded[chunk.prompt]

    def _conditions(self, kind: ConditionKind, chunk: Chunk, request: ClipRequest) -> ConditioningPair:
        positive, negative = without_guides(self._prompt(chunk)), without_guides(self.negative)
        if kind == "every_frame":
            return every_frame(positive, negative, request)
        if kind == "first_frames":
            encode_gray = self.encode if expects_gray(self.model) else None
            return first_frames(positive, negative, request, self.image_condition, encode_gray)
        if kind == "guide" and request.shown is not None:
            values = {"keyframe_idxs": guide_coordinates(self.model, request.shown)}
            return set_values(positive, **values), set_values(negative, **values)
        return positive, negative

    def _sample(self, chunk: Chunk, shape: tuple[int, ...], held: Tensor | None, image: ShownImage | None) -> Tensor:
        """Latents of one model call that holds `held` at its beginning."""
        layout, kind = self.layout, condition_kind(self.model)
        count = 0 if held is None else held.shape[layout.axis]
        noise = draw_noise(chunk, shape, layout, count)
        seen, perturbed = held, None
        level = self.held_noise.at(chunk.index)
        if held is not None and level:
            perturbed = self._perturbed(held, level, noise.perturbation)
            seen = perturbed if self.held_noise.is_whole else held
        request = ClipRequest(shape, chunk.num_frames, seen, image, min(1.0, chunk.anchor_strength))
        latent, mask, unit = self._start(shape, seen, noise.latent)
        guide_image = request.shown if kind == "guide" else None
        if guide_image is not None:
            latent = torch.cat([latent, guide_image.latent], dim=2)
            mask = torch.cat([mask, torch.full((1, 1, 1, 1, 1), 1 - request.strength)], dim=2)
            unit = torch.cat([unit, torch.zeros_like(guide_image.latent)], dim=2)
        weight = self.previous_guidance.at(chunk.index) if count else 0.0
        steps = SigmaRange.of(self.model, self.previous_guidance)
        guider = ChunkGuider(self.model, layout.axis, weight, steps, noise.unknown)
        blind = None
        if weight:
            blind = self._conditions(kind, chunk, replace(request, held=None))[0]
            if kind == "none":  # a mask shows Cosmos which latents are known
                blind = set_values(blind, concat_mask=torch.ones(1, 1, *shape[2:]))
        guider.set_all(*self._conditions(kind, chunk, request), blind, self.cfg)
        if held is not None and perturbed is not None and seen is held:
            conds = self._conditions(kind, chunk, replace(request, held=perturbed))
            guider.show_within(SigmaRange.of(self.model, self.held_noise), *conds)
            guider.hold_perturbed(held, perturbed)
        masked = mask if count or guide_image is not None else None
        return self._run(guider, unit, latent, masked, noise.sampler_seed, shape)

    def _run(
        self,
        guider: comfy.samplers.CFGGuider,
        unit: Tensor,
        latent: Tensor,
        mask: Tensor | None,
        seed: int,
        shape: tuple[int, ...],
    ) -> Tensor:
        """Latents of `shape`; what was joined to them for the model is cut off."""
        latents = guider.sample(
            unit,
            latent,
            self.sampler,
            self.sigmas.clone(),  # uni_pc writes into it
            denoise_mask=mask,
            callback=self.progress.sampler_callback(self.model) if self.progress else None,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        axis = self.layout.axis
        return latents.to(device=mm.intermediate_device(), dtype=torch.float32).narrow(axis, 0, shape[axis])

    def _start(self, shape: tuple[int, ...], seen: Tensor | None, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents that sampling begins with, the denoise mask, and the noise."""
        layout = self.layout
        latent = torch.zeros(shape)
        if seen is not None:
            # The host scales all latents as soon as one is not zero; these are zero when it has.
            latent = self.model.model.process_latent_out(latent)
            latent.narrow(layout.axis, 0, seen.shape[layout.axis]).copy_(seen)
        return latent, held_mask(layout, shape[layout.axis], 0 if seen is None else seen.shape[layout.axis]), unit

    def _perturbed(self, held: Tensor, level: float, noise: Tensor) -> Tensor:
        base = self.model.model
        return base.process_latent_out(perturb(base.process_latent_in(held), level, noise))

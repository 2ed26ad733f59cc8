"""LVDM in the chunk loop: its tail is latents, which a prediction model continues (reference: lvdm, section 6)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy.sd import CLIP, VAE
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.latent_layout import LatentLayout, held_mask
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.remedies import Perturbation, PreviousGuidance
from ....streaming_core.loop.sampler import ChunkSampler, Progress, Size, StepMemory
from ....streaming_core.loop.state import Anchor, ChunkResult
from ....streaming_core.models.lvdm.conditioning import known_places, nearest_level, perturbed
from ....streaming_core.models.lvdm.config import NOISE_LEVELS, LvdmConfig
from ....streaming_core.models.lvdm.gaps import (
    base_latents,
    gap_frames,
    gap_latents,
    latents_of_bases,
    standing_still,
)
from ..encoders import Conditioning, connected_prompt, encode_prompt
from ..identity import conditioning_identity, fields_identity
from ..modelscope.sampler import decode_frames as decode_images
from ..patchers import check_model, step_memory
from ..pixels import core_to_images
from ..remedies.guidance import against_previous
from ..remedies.steps import SigmaRange, check_steps
from .draws import Draws, draw
from .family import check_family, config_of, unused_settings
from .model import no_text, schedule_of, untold, with_known
from .vae import CONTEXT_LATENTS, LvdmVae, decode_frames, encode_frames

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LvdmChunkSampler(ChunkSampler):
    """LVDM in the chunk loop.

    A prediction model sees the last latents of the chunk before; short models hold them with a mask at the level of
    each step, which they were not trained for. With `interpolation`, the prediction model makes every fourth latent
    only.

    Attributes:
        prompts: for text-to-video, positive conditioning of chunk 0, 1, ...; the last one serves all further chunks.
            A prompt of the plan takes their place, encoded by `clip`.
        cfg: for text-to-video.
        noise_level: of the known latents, which the network is told; -1 leaves them clean and tells it nothing.
        previous_guidance: guidance against the previous chunk.
        whole_mask: tell a prediction model that all latents are known, as the release does.
        perturbation: noise per signal on what a chunk continues, in place of `noise_level` there.
    """

    model: ModelPatcher
    vae: VAE
    sampler: Sampler
    sigmas: Tensor
    interpolation: ModelPatcher | None = None
    prompts: tuple[Conditioning, ...] = ()
    negative: Conditioning = field(default_factory=no_text)
    cfg: float = 15.0
    noise_level: int = 100
    previous_guidance: PreviousGuidance = PreviousGuidance(0.1)
    whole_mask: bool = False
    perturbation: Perturbation | None = None
    clip: CLIP | None = None
    progress: Progress | None = None
    _encoded: dict[str, Conditioning] = field(default_factory=dict, repr=False, compare=False)

    family = "lvdm"
    starts_from = frozenset({"prompt", "frames"})
    remembers_anchor = False

    @property
    def config(self) -> LvdmConfig:
        return config_of(self.model)

    @property
    def follows(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"prompt"} if self.config.kind == "text" else ())

    @property
    def fills(self) -> bool:  # type: ignore[override]
        return self.interpolation is not None

    @property
    def size_multiple(self) -> int:
        models = [self.model] if self.interpolation is None else [self.model, self.interpolation]
        return self._pixels * max(config_of(model).factor for model in models)

    @property
    def layout(self) -> LatentLayout:
        if not isinstance(self.vae, LvdmVae):
            return LatentLayout(1, axis=0)
        unit = self.vae.config.scales[0]
        return LatentLayout(unit, axis=2, first_frames=unit)

    @property
    def _pixels(self) -> int:
        """Of a latent, along an edge."""
        return self.vae.config.scales[1] if isinstance(self.vae, LvdmVae) else self.vae.downscale_ratio

    @property
    def _stride(self) -> int:
        """Latents from one that the model makes to the next."""
        if self.interpolation is None:
            return 1
        return (config_of(self.interpolation).temporal_length or 5) - 1

    def identity(self) -> dict[str, Any]:
        # Prompts decide single chunks: `chunk_identity`.
        return fields_identity(self, "prompts", "clip", "progress", *unused_settings(self.config))

    def chunk_identity(self, chunk: Chunk) -> dict[str, Any]:
        if self.config.kind != "text":
            return {}
        return {"prompt": chunk.prompt, "positive": conditioning_identity(self._prompt(chunk))}

    def with_progress(self, progress: Progress) -> LvdmChunkSampler:
        return replace(self, progress=progress)

    def with_previous_guidance(self, guidance: PreviousGuidance) -> ChunkSampler:
        if self.config.kind != "conditional":
            return super().with_previous_guidance(guidance)
        return replace(self, previous_guidance=guidance)

    def blind_calls(self, chunk: Chunk) -> int:
        if self.config.kind != "conditional" or not self._weight(chunk):
            return 0
        runs = self._pairs(chunk) + (1 if chunk.index else 0)
        return SigmaRange.of(self.model, self.previous_guidance).count(self.sigmas) * runs

    def _weight(self, chunk: Chunk) -> float:
        """Of guidance against what is known; there may be latents to fill in between in chunk 0, too."""
        return self.previous_guidance.at(chunk.index)

    def with_perturbed_tail(self, perturbation: Perturbation) -> ChunkSampler:
        """A model of known latents is told the nearest of its own levels, in place of `noise_level`."""
        if self.config.kind == "conditional" and perturbation.is_whole:
            return replace(self, perturbation=perturbation)
        if not perturbation.is_on:
            return self
        if self.config.kind == "conditional":
            raise SettingsError(
                "LVDM takes one noise level of the tail per chunk; set start_percent to 0 and end_percent to 1 in "
                "Perturb Tail"
            )
        raise SettingsError(
            "Perturb Tail has no effect here: LVDM models of short videos hold latents by a mask, at the noise level "
            "of each step; remove Perturb Tail"
        )

    def _level(self, chunk: Chunk) -> int:
        """The noise level of what a chunk continues; -1 for none."""
        if self.perturbation is None:
            return self.noise_level
        noise = self.perturbation.at(chunk.index)
        return nearest_level(noise, NOISE_LEVELS) if noise else -1

    def steps(self, chunk: Chunk) -> int:
        return (len(self.sigmas) - 1) * (1 + self._pairs(chunk))

    def _pairs(self, chunk: Chunk) -> int:
        """Pairs of latents between which a chunk is filled in; 0 for a gap, which is one call."""
        if self.interpolation is None or 0 < chunk.overlap_frames < self.layout.first_frames:
            return 0
        bases = base_latents(self.layout.latents(chunk.num_frames), self._stride)
        return bases - (base_latents(self._held(chunk), self._stride) if chunk.index else 1)

    def _held(self, chunk: Chunk) -> int:
        """Latents of a chunk that are there before it is made."""
        return self.layout.latents(chunk.overlap_frames) if chunk.index else 0

    def fit(self, chunk_frames: int, overlap_frames: int) -> tuple[int, int]:
        layout, stride = self.layout, self._stride
        overlap, bases = (
            base_latents(layout.latents(layout.nearest(frames)), stride) for frames in (overlap_frames, chunk_frames)
        )
        bases = max(bases, overlap + 1)
        fitted = tuple(layout.frames(latents_of_bases(count, stride)) for count in (bases, overlap))
        if fitted != (chunk_frames, overlap_frames):
            log.info(
                "this LVDM model makes chunks of %s: using %d frames with an overlap of %d instead of %d and %d",
                f"{stride * layout.frames_per_latent}n+{layout.first_frames} frames" if stride > 1 else layout.words,
                *(*fitted, chunk_frames, overlap_frames),
            )
        trained = self.config.temporal_length
        if trained and bases != trained:
            log.info("this LVDM model was trained on %d latents; a chunk of %d is an experiment", trained, bases)
        return fitted[0], fitted[1]

    def accept(self, plan: VideoPlan) -> VideoPlan:
        check_family(self.model, self.vae, self.interpolation)
        for model in (self.model, self.interpolation):
            if model is not None:
                check_model(model)
        if self.config.kind == "conditional":
            check_steps(self.model, self.sigmas, self.previous_guidance)
        if plan.beginning.image is not None and self.config.kind != "text":
            raise SettingsError(
                "LVDM begins with frames of its own, and start_image has no place in it; make frames of that image "
                "with another model and connect them as start_frames"
            )
        return super().accept(plan)

    def networks(self) -> tuple[ModelPatcher, ...]:
        models = (self.model,) if self.interpolation is None else (self.model, self.interpolation)
        return *models, self.vae.patcher

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory:
        count = base_latents(self.layout.latents(chunk.num_frames), self._stride)
        return step_memory(self.model, self._shape(count, size), self.vae, 1, (self.model,))

    # The loop

    def first_chunk(self, chunk: Chunk, size: Size, image: Tensor | None) -> ChunkResult:
        generator = chunk.generator()
        shape = self._shape(base_latents(self.layout.latents(chunk.num_frames), self._stride), size)
        bases = self._sample(chunk, shape, generator, None)
        first, rest = bases.narrow(self.layout.axis, 0, 1), self._after(bases, 0, generator, self._weight(chunk))
        latents = torch.cat([first, rest], dim=self.layout.axis)
        return ChunkResult(self._decode(latents, 0), latents)

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        layout, stride = self.layout, self._stride
        held = layout.last(tail, self._held(chunk))
        bases = held[:, :, ::stride] if layout.axis == 2 else held
        generator, shape = chunk.generator(), list(bases.shape)
        shape[layout.axis] = base_latents(layout.latents(chunk.num_frames), stride)
        made = self._sample(chunk, tuple(shape), generator, bases)
        count = bases.shape[layout.axis]
        row = torch.cat([bases, layout.after(made, count)], dim=layout.axis)
        return torch.cat([held, self._after(row, count - 1, generator, self._weight(chunk))], dim=layout.axis)

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        layout = self.layout
        new = layout.after(latents, self._held(chunk))
        return self._decode(torch.cat([tail, new], dim=layout.axis), tail.shape[layout.axis])

    def hand_off(self, plan: VideoPlan, tail: Tensor | None, result: ChunkResult) -> Tensor:
        """The last latents of the video: those that the next chunk holds, and before them some for the decoder."""
        layout = self.layout
        held = layout.latents(plan.overlap_frames)
        keep = max(held, CONTEXT_LATENTS) if layout.axis == 2 else held
        if result.latents is None:
            count = min(keep, max(1, len(result.frames) // layout.frames_per_latent))
            log.info("the last %d start frames are encoded; all further ones stay latents", layout.frames(count))
            return layout.last(self._encode(result.frames[-layout.frames(count) :]), keep)
        if tail is None:
            return layout.last(result.latents, keep)
        return layout.last(torch.cat([tail, layout.after(result.latents, held)], dim=layout.axis), keep)

    # Gaps

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        super().accept_gap(chunk, size)
        if self.perturbation is not None and self.perturbation.is_on:
            raise SettingsError(
                "Perturb Tail has no effect between two keyframes, where nothing has a tail; connect the chunk sampler "
                "without it"
            )

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        """See `ChunkSampler.fill`. The ends are known as latents of frames that stand still (`gaps.py`)."""
        if self.interpolation is None:
            return super().fill(first, last, chunk)
        unit = self.layout.frames_per_latent
        count = gap_latents(chunk.num_frames, self._stride + 1, unit)
        ends = torch.cat([self._encode(standing_still(frame, unit)) for frame in (first, last)], dim=2)
        between = self._between(ends, count, chunk.generator(), self.previous_guidance.amount)
        frames = self._decode(torch.cat([ends[:, :, :1], between, ends[:, :, 1:]], dim=2), 0)
        return frames[gap_frames(chunk.num_frames, count, unit)]

    # Sampling

    def _shape(self, count: int, size: Size) -> tuple[int, ...]:
        height, width = (side // self._pixels for side in size)
        channels = self.vae.latent_channels
        return (count, channels, height, width) if self.layout.axis == 0 else (1, channels, count, height, width)

    def _prompt(self, chunk: Chunk) -> Conditioning:
        """The plan's prompt for a chunk, or else the connected one; errors are those of `connected_prompt`."""
        if chunk.prompt is None or self.clip is None:
            return connected_prompt(chunk, self.prompts)
        if chunk.prompt not in self._encoded:
            self._encoded[chunk.prompt] = encode_prompt(self.clip, chunk.prompt)
        return self._encoded[chunk.prompt]

    def _sample(self, chunk: Chunk, shape: tuple[int, ...], generator: torch.Generator, held: Tensor | None) -> Tensor:
        """Latents of one call of the model, which begins with `held`; those are its own version of them."""
        axis = self.layout.axis
        count = 0 if held is None else held.shape[axis]
        draws = draw(generator, shape, axis, count)
        config = self.config
        if config.kind == "conditional":
            places = known_places(shape[axis], count)
            told = torch.ones_like(places) if self.whole_mask and count else places
            return self._conditional(self.model, draws, held, places, told, self._level(chunk), self._weight(chunk))
        if config.kind == "text":
            return self._run(self.model, draws, self._prompt(chunk), self.negative, self.cfg, held)
        return self._run(self.model, draws, no_text(), no_text(), 1.0, held)

    def _conditional(
        self,
        model: ModelPatcher,
        draws: Draws,
        known: Tensor | None,
        places: Tensor,
        told: Tensor,
        level: int,
        weight: float,
    ) -> Tensor:
        """Latents of a model that sees the `known` ones `[1, 4, n, h, w]` at `places`, and is told of those `told`."""
        if known is None:
            return self._run(model, draws, no_text(), no_text(), 1.0)
        base = model.model
        seen = perturbed(
            base.process_latent_in(known.float()), draws.known, None if level < 0 else level, schedule_of(base.config)
        )
        steps = SigmaRange.of(model, self.previous_guidance)
        guided = against_previous(model, weight, steps, untold)
        return self._run(guided, draws, with_known(seen, places, told, level), no_text(), 1.0)

    def _between(self, ends: Tensor, count: int, generator: torch.Generator, weight: float) -> Tensor:
        """The latents between two, `[1, 4, count - 2, h, w]`."""
        assert self.interpolation is not None
        shape = (*ends.shape[:2], count, *ends.shape[3:])
        places = known_places(count, 1, 1)
        draws = draw(generator, shape, 2, 2)
        made = self._conditional(self.interpolation, draws, ends, places, places, self.noise_level, weight)
        return made[:, :, 1:-1]

    def _after(self, bases: Tensor, number: int, generator: torch.Generator, weight: float) -> Tensor:
        """All latents after base `number`: further bases, and before each of them those that are filled in."""
        if self.interpolation is None:
            return self.layout.after(bases, number + 1)
        row = []
        for first in range(number, bases.shape[2] - 1):
            ends = bases[:, :, first : first + 2]
            row += [self._between(ends, self._stride + 1, generator, weight), ends[:, :, 1:]]
        return torch.cat(row, dim=2)

    def _run(
        self,
        model: ModelPatcher,
        draws: Draws,
        positive: Conditioning,
        negative: Conditioning,
        cfg: float,
        held: Tensor | None = None,
    ) -> Tensor:
        latent, mask = torch.zeros_like(draws.latent), None
        if held is not None:
            layout = self.layout
            count = held.shape[layout.axis]
            # The host scales all latents as soon as one is not zero; these are zero when it has.
            latent = model.model.process_latent_out(latent)
            latent.narrow(layout.axis, 0, count).copy_(held)
            mask = held_mask(layout, latent.shape[layout.axis], count)
        sampled = comfy.sample.sample_custom(
            model,
            draws.latent,
            cfg,
            self.sampler,
            self.sigmas.clone(),  # uni_pc writes into it
            positive,
            negative,
            latent,
            noise_mask=mask,
            callback=self.progress.sampler_callback(model) if self.progress else None,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=draws.sampler_seed,
        )
        return sampled.to(device=mm.intermediate_device(), dtype=torch.float32)

    def _encode(self, frames: Tensor) -> Tensor:
        """Latents of frames `[f, 3, H, W]`."""
        if isinstance(self.vae, LvdmVae):
            return encode_frames(self.vae, frames).to(mm.intermediate_device())
        return self.vae.encode(core_to_images(frames)).float()

    def _decode(self, latents: Tensor, known: int) -> Tensor:
        """Frames of all latents but the first `known`."""
        if isinstance(self.vae, LvdmVae):
            return decode_frames(self.vae, latents, known)
        return decode_images(self.vae, self.layout.after(latents, known))

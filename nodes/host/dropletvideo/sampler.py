"""DropletVideo in the chunk loop: each chunk begins with the last frames of the video, as known frames.

Known frames are pixels (reference: dropletvideo, section 10): the first latent stands for one frame and later ones for
four, so latents of one chunk are not those of the next.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy.sd import CLIP
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.frames.fitting import fit as fit_frames
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.remedies import Perturbation
from ....streaming_core.loop.sampler import Progress, Size, StepMemory, StepWork
from ....streaming_core.loop.state import Anchor, ChunkResult, VideoState
from ....streaming_core.models.dropletvideo.conditioning import inpaint_channels, place_frames
from ....streaming_core.models.dropletvideo.config import (
    SPATIAL_SCALE,
    TEMPORAL_SCALE,
    decoded_frames,
    latent_count,
)
from ....streaming_core.models.dropletvideo.work import forward_flops
from ..compat import intermediate_dtype
from ..encoders import Conditioning, ConditioningPair, connected_prompt
from ..identity import conditioning_identity, identities
from ..patchers import check_model, step_memory
from ..remedies.frames import FrameRemedies, ShownTail
from ..remedies.guider import SteppedGuider
from .model import DEFAULT_FPS, FPS, INPAINT, DropletModel
from .text import encode_text
from .vae import DropletVae, decode_video, encode_video

log = logging.getLogger(__name__)

LEAST_FRAMES = 5
"""Of a model call: two latents."""
FEW_FRAMES = 8
"""Fewer new frames than these before the end image are worth a word."""
DROP, CROSS_FADE = JOINS = ("drop", "cross-fade")
KNOWN_PREFIXES = (1, 4)
"""Numbers of known first frames that the weights were trained with (reference: dropletvideo, section 10)."""


def check_family(model: ModelPatcher, vae: Any) -> None:
    """Raise `SettingsError` unless MODEL and VAE are DropletVideo's."""
    if not isinstance(model.model, DropletModel):
        raise SettingsError("the model is not DropletVideo; load it with Load DropletVideo")
    if not isinstance(vae, DropletVae):
        raise SettingsError("the VAE is not DropletVideo's; connect the vae of Load DropletVideo")
    scale = model.model.latent_format.scale_factor
    if abs(scale - vae.config.scaling_factor) > 1e-6:
        raise SettingsError(
            f"the model was loaded for a VAE with scaling factor {scale:g}, this one has "
            f"{vae.config.scaling_factor:g}; take both from one Load DropletVideo"
        )


def known_conditioning(
    vae: DropletVae,
    size: Size,
    num_frames: int,
    start: Tensor | None,
    end: Tensor | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The inpaint channels `[1, 17, latents, h, w]` of a video that begins with `start` and ends with `end`.

    Frames are `[n, 3, H, W]` in [0, 1]; `noise` is the standard deviation of noise on them.
    """
    known = place_frames(num_frames, *size, start, end)
    channels = inpaint_channels(
        known,
        lambda video: encode_video(vae, video),
        vae.config.scaling_factor,
        vae.config.latent_channels,
        noise,
        generator,
    )
    return channels.transpose(1, 2)


def with_options(conditioning: Conditioning, **options: Any) -> Conditioning:
    """CONDITIONING with further options."""
    return [[text, {**known, **options}] for text, known in conditioning]


def nothing_known(args: dict[str, Any]) -> Tensor:
    """What the model makes of the positive half without known frames, as in a video from the prompt alone."""
    conds = []
    for cond in args["cond"]:
        prepared = dict(cond["model_conds"])
        prepared["c_concat"] = prepared["c_concat"]._copy_with(torch.zeros_like(prepared["c_concat"].cond))
        conds.append({**cond, "model_conds": prepared})
    return comfy.samplers.calc_cond_batch(args["model"], [conds], args["input"], args["sigma"], args["model_options"])[
        0
    ]


@dataclass(frozen=True)
class DropletChunkSampler(FrameRemedies):
    """DropletVideo in the chunk loop; its tail is frames, which the next chunk begins with.

    Attributes:
        prompts: positive conditioning of chunk 0, 1, ...; the last one serves all further chunks. A prompt of the plan
            takes their place, encoded by `clip`.
        fps: the motion setting; lower means stronger motion.
        prefix_frames: last frames of a chunk that the next one begins with.
        reference_noise: standard deviation of noise on known frames, drawn from the chunk's seed.
        suffix: what is added to each of the plan's prompts.
        join: how a chunk follows the one before, one of `JOINS`. "drop" leaves out its version of the frames that it
            begins with, "cross-fade" lets the video pass over into them.
        end_image: `[1, 3, h, w]` in [0, 1], of any size: the frame that the video ends with.
    """

    model: ModelPatcher
    vae: DropletVae
    prompts: tuple[Conditioning, ...]
    negative: Conditioning
    sampler: Sampler
    sigmas: Tensor
    cfg: float = 6.0
    fps: float = DEFAULT_FPS
    prefix_frames: int = 1
    reference_noise: float = 0.0
    suffix: str = ""
    clip: CLIP | None = None
    end_image: Tensor | None = None
    join: str = DROP
    progress: Progress | None = None
    _encoded: dict[str, Conditioning] = field(default_factory=dict, repr=False)

    family = "dropletvideo"
    starts_from = frozenset({"image", "frames", "prompt"})
    follows = frozenset({"prompt", "motion"})
    remembers_anchor = False
    fills = True

    @property
    def lead_frames(self) -> int:
        return self.prefix_frames if self.join == CROSS_FADE else 0

    @property
    def size_multiple(self) -> int:
        return SPATIAL_SCALE * self.model.model.config.patch

    def identity(self) -> dict[str, Any]:
        # What decides single chunks only is in `chunk_identity`.
        return self.other_fields_identity("prompts", "clip", "suffix", "end_image", "join", "progress")

    def chunk_identity(self, chunk: Chunk) -> dict[str, Any]:
        prompt = {"prompt": chunk.prompt, "positive": conditioning_identity(self._prompt(chunk))}
        join = {"join": self.join} if chunk.index and self.lead_frames else {}
        return {**prompt, **chunk.cues("motion"), **join, **self._end_identity(chunk), **self.guidance_identity(chunk)}

    def _end_identity(self, chunk: Chunk) -> dict[str, Any]:
        if not self._ends(chunk):
            return {}
        return {**identities(end_image=self.end_image), "end_fit": chunk.fit, "new_frames": chunk.new_frames}

    def remedied(self) -> tuple[ModelPatcher, Tensor]:
        return self.model, self.sigmas

    def with_progress(self, progress: Progress) -> DropletChunkSampler:
        return replace(self, progress=progress)

    def steps(self, chunk: Chunk) -> int:
        return len(self.sigmas) - 1

    def fit(self, chunk_frames: int, overlap_frames: int) -> tuple[int, int]:
        least = TEMPORAL_SCALE * (self.prefix_frames // TEMPORAL_SCALE + 1) + 1
        whole = TEMPORAL_SCALE * round((chunk_frames - 1) / TEMPORAL_SCALE) + 1
        return max(least, whole), self.prefix_frames

    def accept(self, plan: VideoPlan) -> VideoPlan:
        check_family(self.model, self.vae)
        check_model(self.model)
        if self.prefix_frames not in KNOWN_PREFIXES:
            log.info("DropletVideo was trained to continue 1 or 4 frames; %d are an experiment", self.prefix_frames)
        accepted = super().accept(plan)
        self._accept_join(accepted)
        self._accept_end(accepted)
        spare = decoded_frames(latent_count(accepted.chunk_frames)) - accepted.chunk_frames
        if spare:
            log.info(
                "%d frames are %d latents, which decode to %d frames; the first %d of each chunk are left out",
                accepted.chunk_frames,
                latent_count(accepted.chunk_frames),
                accepted.chunk_frames + spare,
                spare,
            )
        return accepted

    def _accept_join(self, plan: VideoPlan) -> None:
        """Raise `SettingsError` for a cross-fade over more frames than chunks have, or over a single one."""
        if not self.lead_frames:
            return
        if self.lead_frames == 1:
            raise SettingsError(
                "join cross-fade needs more than the 1 frame of prefix_frames to fade over; set prefix_frames to 4, or "
                "join to drop"
            )
        if plan.num_chunks > 1 and plan.chunk_frames < 2 * self.lead_frames:
            raise SettingsError(
                f"a cross-fade over {self.lead_frames} frames needs chunks that add as many, and chunks of "
                f"{plan.chunk_frames} add {plan.chunk_frames - self.lead_frames}; use at least "
                f"{self.fit_gap(2 * self.lead_frames)} chunk_frames, or set join to drop"
            )

    def _accept_end(self, plan: VideoPlan) -> None:
        """Raise `SettingsError` where `end_image` would not be in the video."""
        if self.end_image is None:
            return
        if plan.num_chunks == 1 and plan.given_frames:
            raise SettingsError(
                f"end_image has no effect: start_frames has all {plan.num_frames} frames of the video already; plan "
                "more frames, or disconnect it"
            )
        if plan.num_frames < 2:
            raise SettingsError("a video of 1 frame has no way to end_image; plan more frames, or disconnect it")
        last = plan.chunk(plan.num_chunks - 1)
        self._end(last, plan.size)  # an image that cannot be fitted is refused now, not with the last chunk
        if last.index and last.new_frames < FEW_FRAMES:
            log.warning(
                "the last chunk has %d new frames in which to reach end_image; a video of %d frames gives it %d",
                last.new_frames,
                last.start + last.num_frames - last.overlap_frames,
                last.num_frames - last.overlap_frames,
            )

    def networks(self) -> tuple[ModelPatcher, ...]:
        return self.model, self.vae.patcher

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory:
        return step_memory(self.model, self._latent_shape(chunk, size), self.vae, 1, (self.model,))

    def step_work(self, chunk: Chunk, size: Size) -> StepWork:
        prompt = self._prompt(chunk)
        # The host leaves the negative prompt out where it counts for nothing.
        calls = len(prompt) + (0 if self.cfg == 1 else len(self.negative))
        *_, latents, height, width = self._latent_shape(chunk, size)
        return StepWork(calls, forward_flops(self.model.model.config, latents, height, width, prompt[0][0].shape[1]))

    def first_chunk(self, chunk: Chunk, size: Size, image: Tensor | None) -> ChunkResult:
        latents = self._sample(chunk, size, None if image is None else ShownTail(image), self._end(chunk, size))
        return ChunkResult(self._decode(latents, chunk), latents)

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        size = tail.shape[-2], tail.shape[-1]
        return self._sample(chunk, size, self.shown(chunk, tail), self._end(chunk, size))

    def next_chunk(self, chunk: Chunk, state: VideoState) -> ChunkResult:
        latents = self.sample_chunk(chunk, state.tail, state.anchor)
        frames = self._decode(latents, chunk)
        lead = frames[: chunk.overlap_frames].clone() if self.lead_frames else None
        return ChunkResult(frames[chunk.overlap_frames :], latents, lead=lead)

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        return self._decode(latents, chunk)[chunk.overlap_frames :]

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        super().accept_gap(chunk, size)
        if self.end_image is not None:
            raise SettingsError(
                "end_image has no effect where frames between given ones are filled; disconnect it from the "
                "DropletVideo Chunk Sampler"
            )

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        return self._decode(self._sample(chunk, (first.shape[-2], first.shape[-1]), ShownTail(first), last), chunk)

    def with_perturbed_tail(self, perturbation: Perturbation) -> FrameRemedies:
        if perturbation.is_on and self.reference_noise:
            raise SettingsError(
                "the tail has noise already: reference_noise of the DropletVideo Chunk Sampler is the same kind of "
                "noise; set it to 0 or remove Perturb Tail"
            )
        return super().with_perturbed_tail(perturbation)

    def _latent_shape(self, chunk: Chunk, size: Size) -> tuple[int, ...]:
        height, width = (side // SPATIAL_SCALE for side in size)
        return 1, self.vae.config.latent_channels, latent_count(self._called(chunk)), height, width

    def _ends(self, chunk: Chunk) -> bool:
        """Whether the end image belongs to this chunk."""
        return self.end_image is not None and chunk.ends_video

    def _called(self, chunk: Chunk) -> int:
        """Frames of the model call: where the end image comes, no more than it takes to hold the frames that count."""
        return self.fit_gap(chunk.overlap_frames + chunk.new_frames) if self._ends(chunk) else chunk.num_frames

    def fit_gap(self, num_frames: int) -> int:
        return max(LEAST_FRAMES, TEMPORAL_SCALE * -(-(num_frames - 1) // TEMPORAL_SCALE) + 1)

    def _end(self, chunk: Chunk, size: Size) -> Tensor | None:
        """The known last frames of the model call `[n, 3, H, W]`: the end image from the last frame that counts on."""
        if self.end_image is None or not self._ends(chunk):
            return None
        count = self._called(chunk) - (chunk.overlap_frames + chunk.new_frames) + 1
        return fit_frames(self.end_image, *size, chunk.fit).expand(count, -1, -1, -1)

    def _prompt(self, chunk: Chunk) -> Conditioning:
        """The plan's prompt for a chunk, or else the connected one; errors are those of `connected_prompt`."""
        if chunk.prompt is None or self.clip is None:
            return connected_prompt(chunk, self.prompts)
        text = f"{chunk.prompt} {self.suffix}".strip()
        if text not in self._encoded:
            self._encoded[text] = encode_text(self.clip, text)
        return self._encoded[text]

    def _sample(self, chunk: Chunk, size: Size, start: ShownTail | None, end: Tensor | None = None) -> Tensor:
        """Unscaled latents of a chunk that begins with the frames of `start` `[m, 3, H, W]` and ends with `end`."""
        generator = chunk.generator()
        noise = torch.randn(self._latent_shape(chunk, size), generator=generator)
        sampler_seed = int(torch.randint(2**62, (), generator=generator))

        def conditions(frames: Tensor | None) -> ConditioningPair:
            known = known_conditioning(
                self.vae, size, self._called(chunk), frames, end=end, noise=self.reference_noise, generator=generator
            )
            options = {INPAINT: known, FPS: self.fps if chunk.motion is None else chunk.motion}
            return with_options(self._prompt(chunk), **options), with_options(self.negative, **options)

        model = self.guided(self.model, chunk, nothing_known) if chunk.index else self.model
        guider = SteppedGuider(model)
        guider.set_conds(*conditions(None if start is None else start.frames))
        guider.set_cfg(self.cfg)
        if start is not None and start.perturbed is not None:
            guider.show_within(start.steps, *conditions(start.perturbed))
        latents = guider.sample(
            noise,
            torch.zeros_like(noise),
            self.sampler,
            self.sigmas.clone(),  # uni_pc writes into it
            callback=self.progress.sampler_callback(model) if self.progress else None,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=sampler_seed,
        )
        return latents.to(device=mm.intermediate_device(), dtype=intermediate_dtype())

    def _decode(self, latents: Tensor, chunk: Chunk) -> Tensor:
        """The frames of a chunk; an even number of latents makes three more in front of them, of the first one."""
        return decode_video(self.vae, latents)[-self._called(chunk) :]

"""StreamingModelscope on the host: sampling, decoding, and its chunk sampler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from comfy.sd import CLIP, VAE
from torch import Tensor

from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.sampler import Progress, Size, StepMemory
from ....streaming_core.loop.state import Anchor, ChunkResult
from ....streaming_core.schedules.modelscope import modelscope_sigmas
from ..cam import StreamingCam
from ..encoders import Conditioning, ConditioningPair, connected_prompt, encode_prompt
from ..identity import conditioning_identity
from ..patchers import check_model, step_memory
from ..progress import check_cancel
from ..remedies.frames import FrameRemedies
from ..remedies.guidance import without_cam
from ..windows.beginning import check_chunks
from .apm import AnchorTokens, StreamingApm, anchor_tokens, with_tokens
from .cam import check_family, with_modelscope_cam
from .ddim import Ddim

log = logging.getLogger(__name__)
TRAINED_SIZE = (256, 256)


@dataclass(frozen=True)
class ModelscopeSampling:
    """How one chunk is sampled: SAMPLER, SIGMAS and guidance."""

    sampler: Sampler
    sigmas: Tensor
    cfg: float

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def official_sampling(steps: int = 50, cfg: float = 7.5, eta: float = 1.0) -> ModelscopeSampling:
    """The official continuation: 50 DDIM steps with eta 1, guidance 7.5 (reference: streamingmodelscope, section 5)."""
    return ModelscopeSampling(Ddim(eta), modelscope_sigmas(steps), cfg)


def first_clip_sampling(steps: int = 50, cfg: float = 9.0) -> ModelscopeSampling:
    """The official first chunk: 50 DPM-Solver++(2M) steps, guidance 9."""
    sigmas = torch.cat([modelscope_sigmas(steps)[:-1], torch.zeros(1)])
    return ModelscopeSampling(comfy.samplers.sampler_object("dpmpp_2m"), sigmas, cfg)


@dataclass(frozen=True)
class ClipNoise:
    """All random numbers of one chunk: unit noise `[F, 4, h, w]`, and a seed for the sampler's own noise."""

    latent: Tensor
    sampler_seed: int


def draw_noise(chunk: Chunk, latent_shape: tuple[int, ...]) -> ClipNoise:
    """Draw a chunk's noise on the CPU."""
    generator = chunk.generator()
    latent = torch.randn(latent_shape, generator=generator)
    return ClipNoise(latent, int(torch.randint(2**62, (), generator=generator)))


def sample_clip(
    model: ModelPatcher,
    settings: ModelscopeSampling,
    conds: ConditioningPair,
    noise: ClipNoise,
    progress: Progress | None,
) -> Tensor:
    """Sample one chunk; latents as the host's VAE takes them."""
    positive, negative = conds
    return comfy.sample.sample_custom(
        model,
        noise.latent,
        settings.cfg,
        settings.sampler,
        settings.sigmas.clone(),  # uni_pc writes into it
        positive,
        negative,
        torch.zeros_like(noise.latent),
        callback=progress.sampler_callback(model) if progress else None,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=noise.sampler_seed,
    )


def decode_frames(vae: VAE, latents: Tensor) -> Tensor:
    """Latents `[n, 4, h, w]` to frames `[n, 3, H, W]` in [0, 1]; every frame is decoded alone."""
    frames = []
    for latent in latents.split(1):
        check_cancel()
        frames.append(vae.decode(latent)[..., :3].movedim(-1, 1))
    return torch.cat(frames)


def encode_prompts(clip: CLIP, texts: Iterable[str]) -> dict[str, Conditioning]:
    """CONDITIONING of each different text."""
    return {text: encode_prompt(clip, text) for text in dict.fromkeys(texts)}


@dataclass(frozen=True)
class ModelscopeChunkSampler(FrameRemedies):
    """StreamingModelscope in the chunk loop; its tail is frames, which CAM continues.

    `model` continues with CAM and APM; `first_model` makes the first chunk. `prompts` holds the positive conditioning
    of chunk 0, 1, ...; the last one serves all further chunks. A prompt of the plan takes their place, encoded by
    `clip`. `clip_vision` and `apm` come together; without them there is no memory of the anchor. `anchor_weight`: 0
    (off) to 4, 1 is official. `tokens`, `noise` and `decode_frames` take the place of APM, the seeded generator and
    the VAE where recorded values are replayed.
    """

    model: ModelPatcher
    cam: StreamingCam
    vae: VAE
    prompts: tuple[Conditioning, ...]
    negative: Conditioning
    first_model: ModelPatcher
    clip_vision: ClipVisionModel | None = None
    apm: StreamingApm | None = None
    anchor_weight: float = 1.0
    sampling: ModelscopeSampling = field(default_factory=official_sampling)
    first_sampling: ModelscopeSampling = field(default_factory=first_clip_sampling)
    tokens: Callable[[Tensor], AnchorTokens] | None = None
    noise: Callable[[Chunk, tuple[int, ...]], ClipNoise] | None = None
    decode_frames: Callable[[VAE, Tensor], Tensor] | None = None
    progress: Progress | None = None
    clip: CLIP | None = None
    _encoded: dict[str, Conditioning] = field(default_factory=dict, repr=False)

    family = "streamingmodelscope"
    starts_from = frozenset({"prompt", "frames"})
    follows = frozenset({"prompt", "cam_strength", "anchor_strength"})
    averages_anchors = True

    @property
    def size_multiple(self) -> int:
        return self.cam.config.unet.multiple_px

    @property
    def remembers_anchor(self) -> bool:  # type: ignore[override]
        """Whether APM does."""
        return self.apm is not None or self.tokens is not None

    def accept(self, plan: VideoPlan) -> VideoPlan:
        check_family(self.model, self.cam)
        for model in (self.model, self.first_model):
            check_model(model)
        plan = super().accept(plan)
        check_chunks(self.model, plan)
        return plan

    def identity(self) -> dict[str, Any]:
        # Prompts decide single chunks: `chunk_identity`.
        return self.other_fields_identity("prompts", "clip", "progress")

    def chunk_identity(self, chunk: Chunk) -> dict[str, Any]:
        prompt = {"prompt": chunk.prompt, "positive": conditioning_identity(self._prompt(chunk))}
        names = ("cam_strength", "anchor_strength") if self.remembers_anchor else ("cam_strength",)
        return {**prompt, **chunk.cues(*names), **self.guidance_identity(chunk)} if chunk.index else prompt

    def remedied(self) -> tuple[ModelPatcher, Tensor]:
        return self.model, self.sampling.sigmas

    def with_progress(self, progress: Progress) -> ModelscopeChunkSampler:
        return replace(self, progress=progress)

    def steps(self, chunk: Chunk) -> int:
        return (self.sampling if chunk.index else self.first_sampling).steps

    def networks(self) -> tuple[ModelPatcher, ...]:
        networks = self.model, self.first_model, self.cam.patcher, self.vae.patcher
        if self.apm is None or self.clip_vision is None:
            return networks
        return *networks, self.clip_vision.patcher, self.apm.patcher

    def step_memory(self, chunk: Chunk, size: Size) -> StepMemory:
        return step_memory(self.model, self._latent_shape(chunk, *size), self.vae, 1, (self.model, self.cam.patcher))

    def embed_anchor(self, frame: Tensor) -> AnchorTokens | None:
        height, width = frame.shape[-2:]
        if (height, width) != TRAINED_SIZE:
            log.info("%dx%d is not the 256x256 that StreamingModelscope was trained on", width, height)
        if self.tokens is not None:
            return self.tokens(frame)
        return None if self.apm is None else anchor_tokens(self.clip_vision, self.apm, frame)

    def _prompt(self, chunk: Chunk) -> Conditioning:
        """The plan's prompt for a chunk, or else the connected one; errors are those of `connected_prompt`."""
        if chunk.prompt is None or self.clip is None:
            return connected_prompt(chunk, self.prompts)
        if chunk.prompt not in self._encoded:
            self._encoded.update(encode_prompts(self.clip, [chunk.prompt]))
        return self._encoded[chunk.prompt]

    def _own_prompt(self, chunk: Chunk) -> Conditioning:
        """The prompt of a chunk, saying so in the log when it is another one's."""
        if chunk.prompt is None and 1 < len(self.prompts) <= chunk.index:
            log.info(
                "chunk %d has no prompt of its own; the last of %d prompts is used", chunk.index, len(self.prompts)
            )
        return self._prompt(chunk)

    def _latent_shape(self, chunk: Chunk, height: int, width: int) -> tuple[int, ...]:
        """Shape of a chunk's latents `[F, C, h, w]` for frames of that size."""
        ratio = self.vae.downscale_ratio
        return chunk.num_frames, self.vae.latent_channels, height // ratio, width // ratio

    def _noise(self, chunk: Chunk, height: int, width: int) -> ClipNoise:
        return (self.noise or draw_noise)(chunk, self._latent_shape(chunk, height, width))

    def first_chunk(self, chunk: Chunk, size: Size, image: Tensor | None) -> ChunkResult:
        noise = self._noise(chunk, *size)
        conds = (self._own_prompt(chunk), self.negative)
        latents = sample_clip(self.first_model, self.first_sampling, conds, noise, self.progress)
        return ChunkResult(self._decode(latents), latents)

    def sample_chunk(self, chunk: Chunk, tail: Tensor, anchor: Anchor) -> Tensor:
        positive, negative = self._own_prompt(chunk), self.negative
        tokens: AnchorTokens | None = anchor.embedding
        if tokens is not None:
            weight = self.anchor_weight * chunk.anchor_strength
            positive = with_tokens(positive, tokens.positive, weight)
            negative = with_tokens(negative, tokens.negative, weight)
        model = with_modelscope_cam(self.model, self.cam, self.shown(chunk, tail), chunk.cam_strength)
        model = self.guided(model, chunk, without_cam)
        noise = self._noise(chunk, *tail.shape[-2:])
        return sample_clip(model, self.sampling, (positive, negative), noise, self.progress)

    def decode(self, latents: Tensor, chunk: Chunk, tail: Tensor) -> Tensor:
        # Frames are decoded one by one, so those of the overlap need not be decoded at all.
        return self._decode(latents[chunk.overlap_frames :])

    def _decode(self, latents: Tensor) -> Tensor:
        return (self.decode_frames or decode_frames)(self.vae, latents)

"""StreamingModelscope on the host: sampling, decoding, and its chunk sampler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.state import Anchor
from ....streaming_core.schedules.modelscope import modelscope_sigmas
from ..cam import StreamingCam
from ..fingerprint import model_fingerprint, sampler_fingerprint, tensor_fingerprint
from ..pixels import core_to_images
from ..progress import StepProgress, check_cancel
from .apm import AnchorTokens, with_tokens
from .cam import with_modelscope_cam
from .ddim import Ddim

Conditioning = list
log = logging.getLogger(__name__)
TRAINED_SIZE = (256, 256)


@dataclass(frozen=True)
class ModelscopeSampling:
    """How one clip is sampled: SAMPLER, SIGMAS and guidance."""

    sampler: object
    sigmas: Tensor
    cfg: float

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def describe(self) -> dict:
        return {
            "sampler": sampler_fingerprint(self.sampler),
            "sigmas": [float(sigma) for sigma in self.sigmas],
            "cfg": self.cfg,
        }


def official_sampling(steps: int = 50, cfg: float = 7.5, eta: float = 1.0) -> ModelscopeSampling:
    """The official continuation: 50 DDIM steps with eta 1, guidance 7.5 (reference: streamingmodelscope, section 5)."""
    return ModelscopeSampling(Ddim(eta), modelscope_sigmas(steps), cfg)


def first_clip_sampling(steps: int = 50, cfg: float = 9.0) -> ModelscopeSampling:
    """The official first clip: 50 DPM-Solver++(2M) steps, guidance 9."""
    sigmas = torch.cat([modelscope_sigmas(steps)[:-1], torch.zeros(1)])
    return ModelscopeSampling(comfy.samplers.sampler_object("dpmpp_2m"), sigmas, cfg)


@dataclass(frozen=True)
class ClipNoise:
    """All random numbers of one clip: unit noise `[F, 4, h, w]`, and a seed for the sampler's own noise."""

    latent: Tensor
    sampler_seed: int


def draw_noise(chunk: Chunk, latent_shape: tuple[int, ...]) -> ClipNoise:
    """Draw a chunk's noise on the CPU."""
    generator = chunk.generator()
    latent = torch.randn(latent_shape, generator=generator)
    return ClipNoise(latent, int(torch.randint(2**62, (), generator=generator)))


def sample_clip(model, settings: ModelscopeSampling, conds, noise: ClipNoise, progress: StepProgress | None) -> Tensor:
    """Sample one clip; latents as the host's VAE takes them."""
    positive, negative = conds
    return comfy.sample.sample_custom(
        model,
        noise.latent,
        settings.cfg,
        settings.sampler,
        settings.sigmas,
        positive,
        negative,
        torch.zeros_like(noise.latent),
        callback=progress.sampler_callback(model) if progress else None,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=noise.sampler_seed,
    )


def decode_frames(vae, latents: Tensor) -> Tensor:
    """Latents `[n, 4, h, w]` to frames `[n, 3, H, W]` in [0, 1]; every frame is decoded by itself."""
    frames = []
    for latent in latents.split(1):
        check_cancel()
        frames.append(vae.decode(latent)[..., :3].movedim(-1, 1))
    return torch.cat(frames)


def encode_prompts(clip, texts: Iterable[str]) -> dict[str, Conditioning]:
    """CONDITIONING of each different text."""
    return {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in dict.fromkeys(texts)}


def conditioning_fingerprint(conditioning: Conditioning) -> list[str]:
    """Texts that tell prompts apart."""
    return [tensor_fingerprint(text) for text, _ in conditioning]


@dataclass(frozen=True)
class ModelscopeChunkSampler:
    """StreamingModelscope as the chunk loop sees it (`streaming_core.loop.ChunkSampler`).

    `model` continues with CAM and APM; `first_model` makes the first clip. `prompts` holds the positive conditioning of
    chunk 0, 1, ...; the last one serves all further chunks. Where a plan has a prompt, that one counts, encoded by
    `clip`. `tokens` and `noise` stand for CLIP vision and the seeded
    generator where recorded values are replayed; `anchor_weight` 0 switches the anchor off, 1 is official.
    """

    model: object
    cam: StreamingCam
    vae: object
    prompts: tuple[Conditioning, ...]
    negative: Conditioning
    tokens: Callable[[Tensor], AnchorTokens] | None
    first_model: object
    anchor_weight: float = 1.0
    sampling: ModelscopeSampling = field(default_factory=official_sampling)
    first_sampling: ModelscopeSampling = field(default_factory=first_clip_sampling)
    noise: Callable[[Chunk, tuple[int, ...]], ClipNoise] = draw_noise
    decode_clip: Callable[[object, Tensor], Tensor] = decode_frames
    progress: StepProgress | None = None
    anchor_models: tuple[object, ...] = ()
    """Patchers of the networks behind `tokens`, so that the settings hash knows them."""
    clip: object | None = None
    _encoded: dict[str, Conditioning] = field(default_factory=dict, repr=False)

    kind = "streamingmodelscope"
    starts_from_prompt = True
    averages_anchors = True
    follows = ("prompt", "cam_strength", "anchor_strength")
    """What of a plan this family follows, besides seeds."""

    @property
    def multiple_px(self) -> int:
        """Heights and widths must be multiples of this."""
        return self.cam.config.unet.multiple_px

    def settings(self) -> dict:
        """All that decides what this sampler makes, for the settings hash; `models` tells whose weights."""
        return {
            "models": {
                "model": model_fingerprint(self.model),
                "first_model": model_fingerprint(self.first_model),
                "cam": self.cam.source or model_fingerprint(self.cam.patcher),
                "vae": model_fingerprint(self.vae.patcher),
                "anchor": [model_fingerprint(patcher) for patcher in self.anchor_models],
            },
            "negative": conditioning_fingerprint(self.negative),
            "anchor_weight": self.anchor_weight if self.tokens is not None else None,
            "sampling": self.sampling.describe(),
            "first_sampling": self.first_sampling.describe(),
        }

    def chunk_settings(self, chunk: Chunk) -> dict:
        """What else decides a chunk: its prompt, and what a plan changes. Whatever comes later is re-made with it."""
        own = {"prompt": conditioning_fingerprint(self._prompt(chunk))}
        names = ("cam_strength",) if self.tokens is None else ("cam_strength", "anchor_strength")
        return {**own, **chunk.changed(*names)} if chunk.index else own

    def with_progress(self, progress: StepProgress) -> ModelscopeChunkSampler:
        return replace(self, progress=progress)

    def steps(self, chunk: Chunk) -> int:
        """Sampling steps of a chunk."""
        return (self.sampling if chunk.index else self.first_sampling).steps

    def embed_anchor(self, frame: Tensor) -> AnchorTokens | None:
        height, width = frame.shape[-2:]
        if (height, width) != TRAINED_SIZE:
            log.info("%dx%d is not the 256x256 that StreamingModelscope was trained on", width, height)
        return self.tokens(frame) if self.tokens is not None else None

    def _prompt(self, chunk: Chunk) -> Conditioning:
        """The plan's prompt for a chunk, or else the family's own.

        Raises `SettingsError` when there is neither, or nothing to encode the plan's with.
        """
        if chunk.prompt is None:
            if not self.prompts:
                raise SettingsError(
                    f"chunk {chunk.index} has no prompt; begin the plan's prompts with '0: ...', or connect positive"
                )
            return self.prompts[min(chunk.index, len(self.prompts) - 1)]
        if self.clip is None:
            raise SettingsError("the plan has prompts; connect clip to the chunk sampler, which encodes them")
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

    def latent_shape(self, chunk: Chunk, height: int, width: int) -> tuple[int, ...]:
        """Shape of a chunk's latents `[F, C, h, w]` for frames of that size."""
        ratio = self.vae.downscale_ratio
        return chunk.num_frames, self.vae.latent_channels, height // ratio, width // ratio

    def _noise(self, chunk: Chunk, height: int, width: int) -> ClipNoise:
        return self.noise(chunk, self.latent_shape(chunk, height, width))

    def sample_first_clip(self, chunk: Chunk, height: int, width: int) -> Tensor:
        """The first clip from the prompt alone: `[chunk.num_frames, 3, height, width]`."""
        noise = self._noise(chunk, height, width)
        conds = (self._own_prompt(chunk), self.negative)
        return self.decode(sample_clip(self.first_model, self.first_sampling, conds, noise, self.progress), 0)

    def sample_chunk(self, chunk: Chunk, control_frames: Tensor, anchor: Anchor) -> Tensor:
        positive, negative = self._own_prompt(chunk), self.negative
        tokens: AnchorTokens | None = anchor.embedding
        if tokens is not None:
            weight = self.anchor_weight * chunk.anchor_strength
            positive = with_tokens(positive, tokens.positive, weight)
            negative = with_tokens(negative, tokens.negative, weight)
        model = with_modelscope_cam(self.model, self.cam, core_to_images(control_frames), chunk.cam_strength)
        noise = self._noise(chunk, *control_frames.shape[-2:])
        return sample_clip(model, self.sampling, (positive, negative), noise, self.progress)

    def decode(self, latents: Tensor, first: int) -> Tensor:
        # Frames are decoded one by one, so those before `first` need not be decoded at all.
        return self.decode_clip(self.vae, latents[first:])

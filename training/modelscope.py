"""Stage ms_unet: the base text-to-video UNet of StreamingModelscope, on the videos that say in words what they show.

Noise is predicted on the published betas, as the pack's MODEL samples it. Text tower and image tower have fixed
random weights, the VAE is the trained one of stage vae under the names of the ModelScope file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streaming_core.models.attention import Compute
from streaming_core.models.modelscope.config import TextEncoderConfig, UNet3DConfig
from streaming_core.models.modelscope.detect import CLIP_VISION_PREFIX, TEXT_PREFIX, VAE_PREFIX
from streaming_core.models.modelscope.shapes import clip_text_shapes, diffusers_vae_shapes
from streaming_core.models.modelscope.unet import Merge, VideoUNet
from streaming_core.models.modelscope.vae_names import stable_diffusion_name
from streaming_core.models.registry import shapes_of, take
from streaming_core.models.shapes import openclip_shapes
from streaming_core.models.streamingsvd.detect import IMAGE_ENCODER_PREFIX
from streaming_core.models.towers import ClipVisionConfig, detect_vae
from streaming_core.schedules.modelscope import published_alphas_cumprod

from .configs import DEMO_MODELSCOPE, DEMO_TEXT_TO_VIDEO
from .diffusion import Encoder, randn
from .first_weights import enter_in_pairs, leave_from_pairs
from .footage import Clip, VideoPool, VideoSource, clip_of, pick
from .layout import CPU, Base, Weights, floats, host, initialize, silence
from .videos import HELD_OUT, Variety, make_video

TEXT_SEED, VISION_SEED = 21, 22
LEAST_DIFFERENCE = 1.9
"""Between two channels of a saturated color, in standard deviations of CLIP's images; backgrounds have less."""
UNTOLD_SHARE = 0.1
EXTRA_WEIGHT_OF_MOVING = 3.0
MEASURED_VIDEOS = 4
MEASURED_SIGMAS = (1.0, 3.0, 14.0)
SILENT_TOKENS = (0, 49406, 49407, 320, 1069, 3584)
"""Padding, start, end, "a", "ball" and "moving" have no vector of their own: what all prompts have in common would
outweigh what tells them apart, and an empty prompt is all zeros.
"""
TEXT_SIZE = 4.0
"""Root mean square of what the tower puts out. At 1 the UNet had not begun to read it after 600 steps."""


class TimeConv(nn.Conv3d):
    """A convolution over frames alone, as one of two dimensions, which the CPU computes several times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x.flatten(3), self.weight.flatten(3), self.bias, padding=(1, 0))
        return y.unflatten(3, x.shape[3:])


class TrainingOperations:
    """Layers of the networks while they are trained."""

    Linear, Conv1d, Conv2d, Conv3d = nn.Linear, nn.Conv1d, nn.Conv2d, TimeConv
    GroupNorm, LayerNorm = nn.GroupNorm, nn.LayerNorm


def without_dropout(network: nn.Module) -> nn.Module:
    """The public classes carry dropout, which would draw from the global generator."""
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return network


def silence_branches(network: nn.Module) -> None:
    """Every block starts as the identity."""
    silence(network, ".conv2", ".conv4.3", ".proj_out")


def new_base_unet(config: UNet3DConfig, generator: torch.Generator) -> VideoUNet:
    """A UNet that begins by taking all it is given for noise: its input, normed.

    Without that path it would spend most of a short training on learning to copy.
    """
    unet = without_dropout(initialize(VideoUNet(config, operations=TrainingOperations), generator))
    silence_branches(unet)
    enter_in_pairs(unet.conv_in, config.in_channels)
    nn.init.zeros_(unet.conv_out.weight)
    leave_from_pairs(unet.conv_out, config.in_channels)
    shortcut = unet.up_blocks[-1].resnets[-1].conv_shortcut
    below = shortcut.in_channels - config.channels[0]
    with torch.no_grad():
        for channel in range(2 * config.in_channels):
            shortcut.weight[channel] = 0.0
            shortcut.weight[channel, below + channel] = 1.0
    return unet


def random_text_encoder(config: TextEncoderConfig) -> Weights:
    """A text tower of random weights, always the same ones, under the official keys.

    Its attention looks at all words alike and its feed-forward and positions are silent, so every token behind the
    words carries their sum: prompts of different words are different vectors, and no word drowns in the padding.
    """
    generator, weights = torch.Generator().manual_seed(TEXT_SEED), {}
    for key, shape in sorted(clip_text_shapes(config).items()):
        if key.endswith("token_embedding.weight"):
            weights[key] = torch.randn(shape, generator=generator)
            weights[key][list(SILENT_TOKENS)] = 0.0
        elif key.endswith("final_layer_norm.weight"):
            weights[key] = torch.full(shape, TEXT_SIZE)
        elif len(shape) == 1:
            weights[key] = torch.full(shape, 1.0 if "norm" in key and key.endswith("weight") else 0.0)
        elif any(part in key for part in ("position_embedding", "q_proj", "k_proj", "fc2")):
            weights[key] = torch.zeros(shape)
        else:
            weights[key] = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
            # Shared among 77 tokens, two or three words are faint; the last norm should still find them.
            weights[key] *= 10.0 if "out_proj" in key else 1.0
    return {TEXT_PREFIX + key: tensor for key, tensor in weights.items()}


def modelscope_vae(base: Base) -> Weights:
    """The still-image autoencoder of `base` under the diffusers names of a StreamingModelscope file."""
    image = take(base.tensors, IMAGE_ENCODER_PREFIX)
    config = detect_vae(shapes_of(base.tensors), IMAGE_ENCODER_PREFIX)
    weights, levels = {}, len(config.channel_multipliers)
    for key, shape in diffusers_vae_shapes(config).items():
        weights[VAE_PREFIX + key] = image[stable_diffusion_name(key, levels)].reshape(shape)
    return weights


def frozen_parts(base: Base) -> Weights:
    """What the stages of StreamingModelscope do not train, by official key: VAE and both towers."""
    return {
        **modelscope_vae(base),
        **random_text_encoder(DEMO_MODELSCOPE.text_encoder),
        **color_clip_vision(DEMO_MODELSCOPE.clip_vision),
    }


def color_clip_vision(config: ClipVisionConfig) -> Weights:
    """An image tower made by hand: its embedding tells which saturated colors a image holds, and how evenly.

    A ball's colored half is 3 % of a frame, too little for towers of random weights (`layout.random_clip_vision`):
    their embeddings of videos of one color lie as far apart as those of two. Here every patch becomes its mean color
    (0..2, and its opposite in 3..5, beside constants that fix the scale of all norms), the first feed-forward keeps by
    how much one channel outweighs another (10..15 and 20..25), the second attention averages that over the image.
    """
    generator = torch.Generator().manual_seed(VISION_SEED)
    weights = {
        key: torch.full(shape, 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0)
        for key, shape in openclip_shapes(config).items()
    }
    width, constant = config.width, 20.0
    scale = constant * math.sqrt(2 / width)  # what the norms divide by
    first, second = "transformer.resblocks.0.", "transformer.resblocks.1."
    for channel in range(3):
        weights["conv1.weight"][channel, channel] = 1 / config.patch_px**2
        weights["conv1.weight"][3 + channel, channel] = -1 / config.patch_px**2
    weights["positional_embedding"][:, 6], weights["positional_embedding"][:, 7] = constant, -constant
    for norm in ("ln_pre", first + "ln_2", second + "ln_1"):
        weights[norm + ".weight"].fill_(scale)
    pairs = [(one, other) for one in range(3) for other in range(3) if one != other]
    for row, (one, other) in enumerate(pairs):
        weights[first + "mlp.c_fc.weight"][row, one] = 4.0
        weights[first + "mlp.c_fc.weight"][row, other] = -4.0
        weights[first + "mlp.c_fc.bias"][row] = -4.0 * LEAST_DIFFERENCE
        for feature, sign in ((10 + row, 1.0), (20 + row, -1.0)):
            weights[first + "mlp.c_proj.weight"][feature, row] = sign
            weights[second + "attn.in_proj_weight"][2 * width + feature, feature] = 1.0
            weights[second + "attn.out_proj.weight"][feature, feature] = 400.0
    weights["proj"] = torch.randn(width, config.projection_width, generator=generator) / 4
    weights["proj"][:10] = 0.0
    return {CLIP_VISION_PREFIX + key: tensor for key, tensor in weights.items()}


def color_tower(config: ClipVisionConfig):
    """`color_clip_vision` as the host's CLIP_VISION."""
    return host().encoders.build_clip_vision(take(color_clip_vision(config), CLIP_VISION_PREFIX), config)


class Prompts:
    """Texts as the host's CLIP of the file gives them, `[1, 77, width]`; each is encoded once."""

    def __init__(self, config: TextEncoderConfig, device: torch.device):
        host()
        from comfyui_streamingt2v.nodes.host.modelscope.towers import build_text_encoder

        self.clip = build_text_encoder(floats(take(random_text_encoder(config), TEXT_PREFIX)), config)
        self.device, self.known = device, {}

    def __call__(self, text: str) -> Tensor:
        if text not in self.known:
            [[encoded, _]] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            # Made under inference mode; a copy made outside of it may take part in training.
            self.known[text] = encoded.float().to(self.device).clone()
        return self.known[text]


@dataclass(frozen=True)
class Told:
    """A clip and the words for it."""

    clip: Clip
    words: str


def draw_told(
    source: VideoSource, generator: torch.Generator, frames: int, starts: range, anchor_frame: int | None
) -> Told:
    """As `VideoSource.draw`; the words are those of the anchor frame, or else of the clip's first frame."""
    video = make_video(
        pick(generator, source.pool.num_videos if source.pool else HELD_OUT), source.size, source.variety
    )
    start = starts[pick(generator, len(starts))]
    clip = clip_of(video, frames, start, anchor_frame)
    if source.pool:
        clip = replace(clip, latents=source.pool.latents[video.seed, start : start + frames].float())
    return Told(clip, video.words(start if anchor_frame is None else anchor_frame))


@dataclass(frozen=True)
class Shown:
    """B clips: unit-scale `latents` `[B, T, 4, h, w]`, and `moving` `[B, T, 1, h, w]`, 0 to 1."""

    latents: Tensor
    moving: Tensor

    @property
    def frames(self) -> int:
        return self.latents.shape[1]


def shown(encoder: Encoder, clips: list[Clip]) -> Shown:
    latents = [encoder.encode(clip.footage.frames) if clip.latents is None else clip.latents for clip in clips]
    latents = torch.stack([each.to(encoder.device) for each in latents])
    moving = torch.stack([clip.footage.moving[:, 0] for clip in clips]).to(encoder.device)
    return Shown(latents, F.adaptive_max_pool2d(moving, latents.shape[-2:])[:, :, None])


SIGMAS = ((1 - published_alphas_cumprod()) / published_alphas_cumprod()).sqrt().float()


def nearest_timesteps(sigmas: Tensor) -> Tensor:
    """Timesteps 0..999 of the published levels nearest to `sigmas`, in the logarithm, as the host rounds."""
    return (sigmas.log()[:, None] - SIGMAS.log()).abs().argmin(dim=1)


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """`[count]`: ln sigma ~ N(1, 1.1) for 75 %, uniform over the logarithms of the published levels for the rest."""
    usual = 1.0 + 1.1 * torch.randn(count, generator=generator)
    low, high = math.log(0.1), math.log(float(SIGMAS[-1]))
    spread = low + (high - low) * torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < 0.75
    return nearest_timesteps(torch.where(chosen, usual, spread).exp())


def run_base(unet: VideoUNet, memory: Tensor, x: Tensor, timesteps: Tensor, merge: Merge | None = None) -> Tensor:
    """Predicted noise for `x` `[B, T, 4, h, w]` of unit variance; `memory` from `project_context`."""
    noise = unet(rearrange(x, "b t ... -> (b t) ..."), timesteps.float(), memory, merge, Compute())
    return rearrange(noise, "(b t) ... -> b t ...", b=len(x))


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees, `[B, T, 4, h, w]` of unit variance, and the noise levels `[B, 1, 1, 1, 1]`."""
    sigma = SIGMAS[timesteps].to(latents).view(-1, 1, 1, 1, 1)
    return (latents + sigma * noise) / (1 + sigma**2).sqrt(), sigma


def noise_loss(predict, batch: Shown, generator: torch.Generator) -> Tensor:
    """Squared error of `predict(x, timesteps)`, four times as heavy where something moves.

    Weighted with 1 + sigma^2: near pure noise that is the error of the clip itself, which decides there, and near none
    that of the noise. It equals the error of a v-prediction.
    """
    timesteps = draw_timesteps(len(batch.latents), generator)
    noise = randn(batch.latents.shape, generator, batch.latents)
    x, sigma = noised(batch.latents, noise, timesteps)
    weight = 1 + EXTRA_WEIGHT_OF_MOVING * batch.moving
    error = (1 + sigma**2) * (predict(x, timesteps.to(x.device)) - noise) ** 2
    return (weight * error).sum() / (weight.sum() * noise.shape[2])


@torch.no_grad()
def moving_noise_errors(predict, batch: Shown, sigma: float, parts: Mapping[str, slice]) -> dict[str, float]:
    """Squared error of the denoised latents where something moves, for parts of the clips; always the same noise."""
    noise = randn(batch.latents.shape, torch.Generator().manual_seed(0), batch.latents)
    timesteps = nearest_timesteps(torch.full((len(noise),), sigma))
    x, level = noised(batch.latents, noise, timesteps)
    squared = (level * (predict(x, timesteps.to(x.device)) - noise)) ** 2
    errors = {}
    for name, frames in parts.items():
        error, moving = squared[:, frames], batch.moving[:, frames]
        errors[f"{name}_{sigma:g}"] = float((moving * error).sum() / (moving.sum() * error.shape[2]))
    return errors


class ModelscopeUnetTask:
    """Clips of `frames` frames and their words, which are left out for a tenth of them. `base` holds the VAE.

    `start`: what another run of this stage wrote, to begin with.
    """

    stage = "ms_unet"

    def __init__(
        self,
        base: Base,
        size: int = 96,
        variety: Variety = "narrow",
        pool: VideoPool | None = None,
        batch: int = 3,
        frames: int = 8,
        config: UNet3DConfig = DEMO_TEXT_TO_VIDEO,
        start: Weights | None = None,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.source, self.batch, self.frames = VideoSource(size, variety, pool), batch, frames
        self.starts = range(pool.num_frames - frames + 1) if pool else range(1)
        self.network = new_base_unet(config, torch.Generator().manual_seed(seed)).to(device)
        if start is not None:
            self.network.load_state_dict(start)
        self.encoder = Encoder(base.vae(device), None, 0, device)
        self.prompts = Prompts(DEMO_MODELSCOPE.text_encoder, device)
        self.measured: tuple[Shown, Tensor] | None = None

    def settings(self) -> dict:
        return {
            "size": self.source.size, "videos": self.source.variety, "batch": self.batch, "frames": self.frames,
            "pool": self.source.pool.num_videos if self.source.pool else 0,
        }  # fmt: skip

    def loss(self, generator: torch.Generator) -> Tensor:
        drawn = [draw_told(self.source, generator, self.frames, self.starts, None) for _ in range(self.batch)]
        told = [bool(draw >= UNTOLD_SHARE) for draw in torch.rand(self.batch, generator=generator)]
        text = torch.cat([self.prompts(each.words if say else "") for each, say in zip(drawn, told, strict=True)])
        batch = shown(self.encoder, [each.clip for each in drawn])
        return noise_loss(self._predict(text), batch, generator)

    def _predict(self, text: Tensor):
        memory = self.network.project_context(text)
        return lambda x, timesteps: run_base(self.network, memory, x, timesteps)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of held-out videos: `error` with their words, `untold` without any."""
        if self.measured is None:
            videos = [make_video(HELD_OUT + i, self.source.size, self.source.variety) for i in range(MEASURED_VIDEOS)]
            batch = shown(self.encoder, [clip_of(video, self.frames, 0, None) for video in videos])
            self.measured = batch, torch.cat([self.prompts(video.words(0)) for video in videos])
        (batch, text), errors = self.measured, {}
        for sigma in MEASURED_SIGMAS:
            errors.update(moving_noise_errors(self._predict(text), batch, sigma, {"error": slice(None)}))
            errors.update(moving_noise_errors(self._predict(0 * text), batch, sigma, {"untold": slice(None)}))
        return errors

    def weights(self) -> Weights:
        """The base UNet's file, whose names are the network's own."""
        return {key: tensor.detach() for key, tensor in self.network.state_dict().items()}

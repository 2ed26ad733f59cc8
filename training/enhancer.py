"""Stage enhancer: a small I2VGen-XL that mends worn clips, conditioned as Enhance Video conditions it.

The main network of the node works from a noised worn clip to a clean one, so that is what a step sees: a level on the
way from the start of a pass to its end, where the fault that is left has shrunk as the noise has. v is predicted on
the enhancer's own cosine schedule. Text tower and image tower are those of StreamingModelscope, the VAE is that of the
pool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from streaming_core.enhance.images import clip_pixel_values, clip_square, to_image
from streaming_core.enhance.settings import NEGATIVE_PROMPT, PROMPT, EnhanceSettings
from streaming_core.enhance.size import Size
from streaming_core.errors import SettingsError
from streaming_core.models.i2vgenxl.detect import I2VGenXLConfig
from streaming_core.models.i2vgenxl.network import build, position_ramp
from streaming_core.schedules.ddim import TRAIN_TIMESTEPS, add_noise, ddim_step, enhancer_alphas_cumprod, kept_timesteps

from .configs import DEMO_ENHANCER, DEMO_MODELSCOPE
from .diffusion import Encoder, moving_error, randn, weighted_error
from .enhancer_wear import Wear, color_axes, draw_wear, worn_image, worn_latents
from .footage import Clip, clip_of, pick
from .layout import CPU, Base, Weights, host, initialize, silence
from .modelscope_towers import Prompts, color_tower
from .modelscope_unet import (
    CaptionedClip,
    ClipBatch,
    TrainingOperations,
    clip_batch,
    draw_captioned,
)
from .task import Clips
from .videos import Footage

ALPHAS = enhancer_alphas_cumprod()
STARTS = range(150, 850)
"""Timesteps at which passes begin: strengths from 0.15 to 0.85, most of them between 0.3 and 0.7."""
WORN_SHARE = 0.8
"""The other clips are as they should be, at any level of noise: what any video model sees."""
UNWANTED_SHARE = 0.12
"""Of clips with the negative prompt and no embedding, whose answer is the worn clip itself: what guidance leaves."""
CAPTION_SHARE = 0.2
"""Of clips whose prompt is their caption; the others have the default prompt of the node."""
MENDED_SHARE = 0.5
"""Of images that are as they should be, as enhanced keyframes are; the others are worn like their clip."""
USUAL_FPS = EnhanceSettings().fps_condition
TIMED_SHARE = 0.5
USUAL_TIMESTEP = 450
"""Where predicted noise is turned into v exactly at the start."""
MEASURED_VIDEOS = 4
MEASURED_WEAR = Wear(grid_share=0.85, noise=0.05)
MEASURED_STRENGTHS = (0.4, 0.7)
MEASURED_STEPS = 10


def spans(frames: int) -> tuple[tuple[int, int], ...]:
    """Frames of a clip and their distance: windows are consecutive, the clip of keyframes is short and wide apart."""
    return ((frames, 1), (frames, 1), (frames, 2), (max(2, frames // 2), 5))


def new_enhancer(config: I2VGenXLConfig, base_unet: Weights, generator: torch.Generator) -> nn.Module:
    """An enhancer that begins as a text-to-video UNet, whose blocks have the same names, as I2VGen-XL itself did.

    `base_unet` predicts noise and sees neither image nor rate: these say nothing yet, and v is put together from
    the noise and from the input, which goes in front of the last convolution as pairs. Raises `SettingsError` where it
    is not of these widths.
    """
    network = build(config, operations=TrainingOperations).requires_grad_(True)
    initialize(network, generator)
    silence(network, "temporal_encoder.attn1.to_out.0", "temporal_encoder.ff.net.2")
    silence(network, "fps_embedding.2", "latents_context_embedding.5")
    values, first = config.latent_channels, base_unet["conv_in.weight"]
    taken = {**base_unet, "conv_in.weight": torch.cat([first, 0 * first], dim=1)}
    own = network.state_dict()
    if odd := [key for key, tensor in taken.items() if key not in own or own[key].shape != tensor.shape]:
        raise SettingsError(f"the base UNet has {len(odd)} weights (first {odd[0]}) that the enhancer has not")
    network.load_state_dict({**own, **taken})
    noise, signal = (1 - ALPHAS[USUAL_TIMESTEP]).sqrt(), ALPHAS[USUAL_TIMESTEP].sqrt()
    with torch.no_grad():
        network.conv_out.weight /= signal
        for value in range(values):
            network.conv_out.weight[value, 2 * value, 1, 1] -= noise / signal
            network.conv_out.weight[value, 2 * value + 1, 1, 1] += noise / signal
    return network


@dataclass(frozen=True)
class Conditions:
    """What goes with B clips: `text` `[B, 77, C]`, the `image`'s latents `[B, 4, h, w]`, its `embedding` `[B, 1, C]`
    and the rate, `fps` `[B]`.
    """

    text: Tensor
    image: Tensor
    embedding: Tensor
    fps: Tensor


def run(network: nn.Module, x: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """Predicted v of `x` `[B, T, 4, h, w]` at `timesteps` `[B]`."""
    sample = rearrange(x, "b t c h w -> b c t h w")
    image = position_ramp(conditions.image, x.shape[1])
    velocity = network.denoise(sample, timesteps, conditions.text, image, conditions.embedding, conditions.fps)
    return rearrange(velocity, "b c t h w -> b t c h w")


def draw_levels(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Timesteps of `count` worn clips and those at which their passes began, each `[count]`."""
    starts = torch.randint(STARTS.start, STARTS.stop, (count,), generator=generator)
    return (1 + torch.rand(count, generator=generator) * starts).long(), starts


def noise_ratio(timesteps: Tensor) -> Tensor:
    """Noise per signal, `[n]`."""
    alphas = ALPHAS[timesteps].clamp(min=1e-6)
    return ((1 - alphas) / alphas).sqrt()


def each_clip(values: Tensor, like: Tensor) -> Tensor:
    """`[B]` to `[B, 1, 1, 1, 1]`."""
    return values.to(like).view(-1, 1, 1, 1, 1)


def velocity_loss(output: Tensor, x: Tensor, target: Tensor, timesteps: Tensor, moving: Tensor) -> Tensor:
    """Squared error of v, four times as heavy where something moves; `target` is what `x` should become."""
    alphas = each_clip(ALPHAS[timesteps], x)
    velocity = (alphas.sqrt() * x - target) / (1 - alphas).sqrt()
    return weighted_error((output - velocity) ** 2, moving)


@dataclass(frozen=True)
class Shot:
    """What a step is made of: B clips with their captions, `stride` frames apart, and their latents.

    `wears` says how each is worn, `worn` `[B, T, 4, h, w]` what that makes of its latents, `unwanted` `[B]` which of
    them stay so.
    """

    drawn: list[CaptionedClip]
    stride: int
    batch: ClipBatch
    wears: list[Wear | None]
    worn: Tensor
    unwanted: Tensor


def every(clip: Clip, stride: int) -> Clip:
    """Each `stride`-th frame of it."""
    footage = Footage(clip.footage.frames[::stride], clip.footage.moving[::stride])
    return replace(clip, footage=footage, latents=None if clip.latents is None else clip.latents[::stride])


class EnhancerTask:
    """Clips of windows and of keyframes, most of them worn. `base` holds the VAE."""

    stage = "enhancer"

    def __init__(
        self,
        base: Base,
        base_unet: Weights,
        clips: Clips,
        config: I2VGenXLConfig = DEMO_ENHANCER,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.clips, self.source, self.batch, self.device = clips, clips.source, clips.batch, device
        self.network = new_enhancer(config, base_unet, torch.Generator().manual_seed(seed)).to(device)
        self.encoder = Encoder(base.vae(device), color_tower(DEMO_MODELSCOPE.clip_vision), 0, device)
        self.prompts = Prompts(DEMO_MODELSCOPE.text_encoder, device)
        self.axes = color_axes(self.encoder, clips.size)
        self.measured: tuple[ClipBatch, Tensor, Conditions] | None = None

    def settings(self) -> dict[str, Any]:
        return self.clips.settings()

    def loss(self, generator: torch.Generator) -> Tensor:
        shot = self._draw(generator)
        conditions = self._condition(shot, generator)
        levels, starts = draw_levels(self.batch, generator)
        anywhere = torch.randint(1, TRAIN_TIMESTEPS, (self.batch,), generator=generator)
        timesteps = torch.where(torch.tensor([wear is None for wear in shot.wears]), anywhere, levels)
        left = each_clip(noise_ratio(levels) / noise_ratio(starts), shot.worn)
        target = torch.where(each_clip(shot.unwanted, shot.worn) > 0, shot.worn, shot.batch.latents)
        noise = randn(shot.worn.shape, generator, shot.worn)
        x = add_noise(torch.lerp(target, shot.worn, left), noise, each_clip(ALPHAS[timesteps], shot.worn))
        output = run(self.network, x, timesteps.to(self.device), conditions)
        return velocity_loss(output, x, target, timesteps, shot.batch.moving)

    def _draw(self, generator: torch.Generator) -> Shot:
        choices = spans(self.clips.frames)
        frames, stride = choices[pick(generator, len(choices))]
        length = (frames - 1) * stride + 1
        starts = self.clips.starts(length)
        drawn = [draw_captioned(self.source, generator, length, starts, None) for _ in range(self.batch)]
        batch = clip_batch(self.encoder, [every(each.clip, stride) for each in drawn])
        wears = [draw_wear(generator, WORN_SHARE) for _ in drawn]
        pairs = zip(batch.latents, wears, strict=True)
        worn = torch.stack([worn_latents(clip, wear, self.axes, generator) for clip, wear in pairs])
        unwanted = torch.rand(self.batch, generator=generator) < UNWANTED_SHARE
        return Shot(drawn, stride, batch, wears, worn, unwanted)

    def _condition(self, shot: Shot, generator: torch.Generator) -> Conditions:
        """The true rate for half of the clips, the usual one for the others."""
        mended, captioned, timed = (torch.rand(self.batch, generator=generator) for _ in range(3))
        mended, texts, embeddings = mended < MENDED_SHARE, [], []
        for index, (each, wear) in enumerate(zip(shot.drawn, shot.wears, strict=True)):
            unwanted, prompt = shot.unwanted[index], each.caption if captioned[index] < CAPTION_SHARE else PROMPT
            texts.append(self.prompts(NEGATIVE_PROMPT if unwanted else prompt))
            image = each.clip.anchor if mended[index] else worn_image(each.clip.anchor, wear)
            embeddings.append(self.embed(image[0]) * ~unwanted)
        first = torch.where(each_clip(mended, shot.worn) > 0, shot.batch.latents, shot.worn)[:, 0]
        fps = torch.where(timed < TIMED_SHARE, round(USUAL_FPS / shot.stride), USUAL_FPS)
        return Conditions(torch.cat(texts), first, torch.cat(embeddings), fps.to(self.device))

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """`[3, H, W]` in 0..1 to `[1, 1, C]`, prepared as the pack prepares it."""
        host()
        from comfyui_streamingt2v.nodes.host.encoders import embed_pixels

        tower = self.encoder.clip_vision
        square = clip_square(to_image(image), Size(*image.shape[-2:]), tower.image_size)
        return embed_pixels(tower, clip_pixel_values(square)).unsqueeze(1).to(self.device).clone()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Squared error of latents where something moves, of held-out videos that were worn as images: as they are
        given, `worn`, and mended by passes of some strengths, `mended_STRENGTH`.
        """
        if self.measured is None:
            self.measured = self._held_out()
        batch, worn, conditions = self.measured

        def error(made: Tensor) -> float:
            return moving_error((made - batch.latents) ** 2, batch.moving)

        mended = {strength: mend(self.network, worn, conditions, strength) for strength in MEASURED_STRENGTHS}
        return {"worn": error(worn), **{f"mended_{strength:g}": error(made) for strength, made in mended.items()}}

    def _held_out(self) -> tuple[ClipBatch, Tensor, Conditions]:
        clips = [clip_of(video, self.clips.frames, 0, None) for video in self.clips.held_out(MEASURED_VIDEOS)]
        batch, generator = clip_batch(self.encoder, clips), torch.Generator().manual_seed(0)
        images = [worn_image(clip.footage.frames, MEASURED_WEAR, generator) for clip in clips]
        worn = torch.stack([self.encoder.encode(frames) for frames in images])
        embeddings = torch.cat([self.embed(frames[0]) for frames in images])
        text = self.prompts(PROMPT).expand(len(clips), -1, -1)
        fps = torch.full((len(clips),), USUAL_FPS, device=self.device)
        return batch, worn, Conditions(text, worn[:, 0], embeddings, fps)

    def weights(self) -> Weights:
        """The enhancer's file, whose names are the network's own."""
        return {key: tensor.detach() for key, tensor in self.network.state_dict().items()}


def mend(
    network: nn.Module, worn: Tensor, conditions: Conditions, strength: float, steps: int = MEASURED_STEPS
) -> Tensor:
    """One pass over worn latents `[B, T, 4, h, w]` in one window, without guidance; always the same noise."""
    timesteps = kept_timesteps(steps, strength)
    ends = torch.cat([ALPHAS[timesteps], torch.ones(1)]).to(worn)
    x = add_noise(worn, randn(worn.shape, torch.Generator().manual_seed(0), worn), ends[0])
    for index, timestep in enumerate(timesteps.tolist()):
        levels = torch.full((len(x),), timestep, device=x.device)
        x = ddim_step(x, run(network, x, levels, conditions), ends[index], ends[index + 1])
    return x

"""Stage 1: the VAE, an image encoder and a decoder that mixes frames, on films.

One network is trained for both of the official autoencoders (`layout.autoencoder_tensors`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streaming_core.models.streamingsvd.config import StreamingSVDConfig

from .films import HELD_OUT, Footage, Variety, make_film
from .footage import FilmSource, clip_of, pick
from .layout import CPU, DEMO, LATENT_SCALE, Weights, build_vae, initialise, silence

KL_WEIGHT = 2e-4
EDGE_WEIGHT = 0.5
EXTRA_WEIGHT_OF_MOVING = 3.0
WHOLE_SHARE = 0.25
"""Share of steps on whole frames; the others see a quarter of their area, around something that moves."""
MEASURED_FILMS = 8


class VaeTask:
    """Absolute error of pixels and of their differences to their neighbours, and a small pull to unit Gaussians."""

    stage = "vae"

    def __init__(
        self,
        size: int = 128,
        variety: Variety = "narrow",
        batch: int = 2,
        frames: int = 4,
        config: StreamingSVDConfig = DEMO,
        device: torch.device = CPU,
        seed: int = 0,
    ):
        self.source, self.batch, self.frames, self.device = FilmSource(size, variety), batch, frames, device
        network = build_vae(config.image_encoder, config.first_stage, CPU)
        self.network = initialise(network, torch.Generator().manual_seed(seed))
        # Frame mixing starts as doing nothing.
        silence(self.network, ".time_stack.out_layers.3", "conv_out.time_mix_conv")
        nn.init.dirac_(self.network.decoder.conv_out.time_mix_conv.weight)
        self.network.to(device)

    def settings(self) -> dict:
        return {"size": self.source.size, "films": self.source.variety, "batch": self.batch, "frames": self.frames}

    def loss(self, generator: torch.Generator) -> Tensor:
        clips = [self.source.draw(generator, self.frames, (0,), 0).footage for _ in range(self.batch)]
        if float(torch.rand((), generator=generator)) >= WHOLE_SHARE:
            clips = [crop_around_movement(clip, self.source.size // 2, generator) for clip in clips]
        frames = torch.cat([clip.frames for clip in clips]).to(self.device) * 2 - 1
        weight = 1 + EXTRA_WEIGHT_OF_MOVING * torch.cat([clip.moving for clip in clips]).to(self.device)
        moments, _ = self.network.encode(frames, unregularized=True)
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        latents = mean + (log_variance / 2).exp() * noise
        # One clip after the other: the host's decoder takes all it is given for one.
        decoded = torch.cat([self.network.decode(clip) for clip in latents.split(self.frames)])
        pixels = (weight * (decoded - frames).abs()).sum() / (3 * weight.sum())
        edges = sum((differences(decoded, axis) - differences(frames, axis)).abs().mean() for axis in (2, 3))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return pixels + EDGE_WEIGHT * edges + KL_WEIGHT * kl

    def _held_out(self) -> Tensor:
        """`[films, frames, 3, H, W]` in -1..1."""
        films = [make_film(HELD_OUT + i, self.source.size, self.source.variety) for i in range(MEASURED_FILMS)]
        return torch.stack([clip_of(film, self.frames, 0, 0).footage.frames for film in films]).to(self.device) * 2 - 1

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Peak signal to noise ratio of held-out films in dB, through posterior means."""
        frames = self._held_out()
        decoded = torch.stack([self.network.decode(self.network.encode(film)).clamp(-1, 1) for film in frames])
        return {"psnr": float(-10 * torch.log10(F.mse_loss(decoded, frames) / 4))}

    @torch.no_grad()
    def weights(self) -> Weights:
        latents = torch.cat([self.network.encode(film) for film in self._held_out()])
        return scaled_weights(self.network, rearrange(latents, "n c h w -> c (n h w)").square().mean(dim=1).sqrt())


def crop_around_movement(clip: Footage, side: int, generator: torch.Generator) -> Footage:
    """A square of `side` pixels whose middle is, where the border lets it, a moving pixel of the first frame."""
    places = (clip.moving[0, 0] > 0.5).nonzero()
    if len(places):
        centre = places[pick(generator, len(places))].tolist()
    else:
        centre = [pick(generator, size) for size in clip.moving.shape[-2:]]
    top, left = (min(max(c - side // 2, 0), s - side) for c, s in zip(centre, clip.moving.shape[-2:], strict=True))
    cut = (..., slice(top, top + side), slice(left, left + side))
    return Footage(clip.frames[cut], clip.moving[cut])


def differences(frames: Tensor, axis: int) -> Tensor:
    return frames.diff(dim=axis)


def scaled_weights(network: nn.Module, size: Tensor) -> Weights:
    """The same autoencoder with latents of root mean square 1 / 0.18215 in every channel; now they have `size` `[4]`.

    Exact: the last convolution in front of the latents grows by what the first one behind them shrinks.
    """
    weights = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    grow = 1 / (LATENT_SCALE * size)
    rows = torch.cat([grow, torch.ones_like(grow)])
    weights["quant_conv.weight"] *= rows.view(-1, 1, 1, 1)
    weights["quant_conv.bias"] *= rows
    # The other half of its outputs are the logarithms of the variances.
    weights["quant_conv.bias"][len(grow) :] += 2 * grow.log()
    weights["decoder.conv_in.weight"] /= grow.view(1, -1, 1, 1)
    return weights

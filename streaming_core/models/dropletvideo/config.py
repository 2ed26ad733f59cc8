"""Sizes and settings of DropletVideo's networks. Defaults are the published 5B model's."""

from __future__ import annotations

from dataclasses import dataclass

TEMPORAL_SCALE, SPATIAL_SCALE = 4, 8
"""Frames per latent after the first, and pixels per latent along an edge."""
DEFAULT_SCALING_FACTOR = 0.7
"""Of the VAE next to a 5B transformer; weights carry no trace of it (reference: dropletvideo, section 6)."""


@dataclass(frozen=True)
class DropletConfig:
    """The transformer.

    Attributes:
        width: channels of a token.
        head_width: channels of an attention head.
        layers: transformer blocks.
        in_channels: noisy latents, one mask, latents of the known frames.
        out_channels: channels of a latent.
        text_width: channels of an encoded text token.
        embedding_width: channels of the embedded timestep and frame rate.
        feed_forward_width: inner channels of a block's feed-forward.
        patch: latents along the edge of a token.
        norm_eps: of the layer norms over a token.
        noise_on_reference: whether it was trained with noise on known frames (`add_noise_in_inpaint_model`); no trace
            in the weights, so off unless config.json says otherwise.
    """

    width: int = 3072
    head_width: int = 64
    layers: int = 42
    in_channels: int = 33
    out_channels: int = 16
    text_width: int = 4096
    embedding_width: int = 512
    feed_forward_width: int = 12288
    patch: int = 2
    norm_eps: float = 1e-5
    noise_on_reference: bool = False

    @property
    def heads(self) -> int:
        return self.width // self.head_width


@dataclass(frozen=True)
class CausalVaeConfig:
    """The VAE.

    Attributes:
        channels: of each level, finest first. The first two levels below the finest also halve time.
        layers_per_block: residual blocks of an encoder level; a decoder level has one more.
        latent_channels: channels of a latent.
        norm_groups: groups of every group norm; no trace in the weights.
        norm_eps: of every group norm; no trace in the weights.
        scaling_factor: latents of the VAE times this are what the transformer sees; no trace in the weights.
        sample_height: height in pixels of the videos it was trained on. Official tiles are half as high.
        sample_width: their width in pixels.
    """

    channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3
    latent_channels: int = 16
    norm_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = DEFAULT_SCALING_FACTOR
    sample_height: int = 480
    sample_width: int = 720

    @property
    def default_tile(self) -> tuple[int, int]:
        """Height and width in pixels of the official tiles."""
        return self.sample_height // 2, self.sample_width // 2


def latent_count(num_frames: int) -> int:
    """Latents that `num_frames` frames, 4k + 1, are encoded to: k + 1."""
    return (num_frames - 1) // TEMPORAL_SCALE + 1


def decoded_frames(latents: int) -> int:
    """Frames that come out of `latents` latents: 4 (n - 1) + 1 where n is odd, 4n where it is even.

    The decoder takes latents in twos, and only a first group of three keeps the frame that stands alone (reference:
    dropletvideo, section 6).
    """
    return TEMPORAL_SCALE * (latents - 1) + 1 if latents % 2 else TEMPORAL_SCALE * latents

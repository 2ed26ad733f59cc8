"""Configuration of the StreamingModelscope networks; read off keys and shapes by `detect.py`."""

from __future__ import annotations

from dataclasses import dataclass

from ..towers import ClipVisionConfig, VaeConfig
from ..unet3d import UNet3DSizes, skip_channels


@dataclass(frozen=True)
class MixerConfig:
    """APM mixers of a UNet: every spatial cross-attention mixes `context_tokens` down to `text_tokens`."""

    text_tokens: int
    context_tokens: int
    kernel: int

    @property
    def image_tokens(self) -> int:
        return self.context_tokens - self.text_tokens


@dataclass(frozen=True)
class UNet3DConfig(UNet3DSizes):
    """The 3-D UNet (reference: streamingmodelscope, section 4.1). Release: 4 in, 4 out, 320, 640, 1280, 1280.

    `mixers` is None for a UNet without APM.
    """

    mixers: MixerConfig | None = None

    @property
    def factor(self) -> int:
        """Latent height and width are halved once per level but the last."""
        return 2 ** (len(self.channels) - 1)

    @property
    def multiple_px(self) -> int:
        """Pixel heights and widths are multiples of this (256 fits; the VAE halves three times more)."""
        return 8 * self.factor

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Channels of the skips, in the order in which the down path makes them."""
        return tuple(skip_channels(self))


@dataclass(frozen=True)
class ModelscopeCamConfig:
    """The CAM branch and its mergers. Pixel encoder of the release: 32, 96, 256, 512."""

    unet: UNet3DConfig
    pixel_channels: tuple[int, ...]
    merger_head_width: int = 64


@dataclass(frozen=True)
class ImageProjectorConfig:
    """The token network of APM: an image embedding to `tokens` tokens of the same width."""

    width: int
    inner_width: int
    tokens: int


@dataclass(frozen=True)
class TextEncoderConfig:
    """A CLIP text tower in the transformers layout; the release has 23 layers of 1024, the SD 2.1 encoder."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_tokens: int


@dataclass(frozen=True)
class StreamingModelscopeConfig:
    """All networks of one `streaming_t2v.ckpt`."""

    unet: UNet3DConfig
    cam: ModelscopeCamConfig
    image_projector: ImageProjectorConfig
    vae: VaeConfig
    text_encoder: TextEncoderConfig
    clip_vision: ClipVisionConfig

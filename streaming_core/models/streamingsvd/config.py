"""Configuration of the StreamingSVD networks; read off keys and shapes by `detect.py`."""

from __future__ import annotations

from dataclasses import dataclass

from ..towers import ClipVisionConfig, VaeConfig


@dataclass(frozen=True)
class Level:
    """One resolution of the UNet encoder: a residual block per entry of `transformer_depths` (0: no transformer)."""

    channels: int
    transformer_depths: tuple[int, ...]
    downsample: bool


@dataclass(frozen=True)
class VideoUNetConfig:
    """The video UNet (reference: streamingsvd, section 4). SVD-XT: 8 in, 4 out, 320 wide, levels 1, 2, 4, 4."""

    in_channels: int
    out_channels: int
    model_channels: int
    levels: tuple[Level, ...]
    middle_depth: int
    context_width: int
    vector_width: int
    head_width: int = 64

    @property
    def multiple_px(self) -> int:
        """Frame sizes must be multiples of this: 8 for the VAE, doubled by every halving of the UNet."""
        return 8 * 2 ** sum(level.downsample for level in self.levels)


@dataclass(frozen=True)
class CamConfig:
    """The CAM network and the UNet it belongs to. Pixel encoder of the release: 32, 96, 256, 512."""

    unet: VideoUNetConfig
    pixel_channels: tuple[int, ...]
    merger_head_width: int = 64


@dataclass(frozen=True)
class StreamingSVDConfig:
    """All networks of one StreamingSVD file."""

    cam: CamConfig
    image_encoder: VaeConfig
    first_stage: VaeConfig
    clip_vision: ClipVisionConfig

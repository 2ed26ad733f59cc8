"""Configuration of the EMA-VFI network; read off keys and shapes by `detect.py`."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import SettingsError

HEAD_WIDTH = 32
WINDOW = 7
MULTIPLE_PX = 16


@dataclass(frozen=True)
class EmaVfiConfig:
    """Sizes of one network (reference: ema-vfi, section 1). `ours`: 32 wide, depths 2, 2, 2, 4, 4.

    channels: of the five stages (full size to 1/16). depths: convolutions or transformer blocks per stage.
    num_heads, motion_channels (per block), mlp_channels: of stages 4 and 5. flow_channels: hidden width of the two
    flow heads, coarse first. refine_channels: base width of the refinement UNet.
    """

    channels: tuple[int, int, int, int, int]
    depths: tuple[int, int, int, int, int]
    num_heads: tuple[int, int]
    motion_channels: tuple[int, int]
    mlp_channels: tuple[int, int]
    flow_channels: tuple[int, int]
    refine_channels: int
    window: int = WINDOW

    def __post_init__(self) -> None:
        for stage, heads in enumerate(self.num_heads):
            width, motion = self.channels[3 + stage], self.motion_channels[stage]
            if width % heads or motion % heads:
                raise SettingsError(
                    f"EMA-VFI stage {4 + stage} has {width} channels and {motion} motion channels, "
                    f"which {heads} heads do not divide; give a number of heads that divides both"
                )


def standard_config(width: int, depths: tuple[int, int, int, int, int]) -> EmaVfiConfig:
    """The published family: `ours` is `(32, (2, 2, 2, 4, 4))`, `ours_small` `(16, (2, 2, 2, 2, 2))`."""
    channels = tuple(width * 2**stage for stage in range(5))
    return EmaVfiConfig(
        channels=channels,
        depths=depths,
        num_heads=(channels[3] // HEAD_WIDTH, channels[4] // HEAD_WIDTH),
        motion_channels=(channels[3] // depths[3], channels[4] // depths[4]),
        mlp_channels=(4 * channels[3], 4 * channels[4]),
        flow_channels=(4 * width, 4 * width),
        refine_channels=2 * width,
    )

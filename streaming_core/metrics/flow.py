"""Where optical flow comes from: RAFT-large with the user's weights, or the weight-free fallback, always by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError, StreamingError
from ..models.quantized import plain_weights
from ..models.registry import Architecture, load_strict
from ..models.weight_file import is_safetensors, refuse_other_content, state_dict_of
from ..models.wrappers import named_weights
from .classical_flow import lucas_kanade
from .mawe import SIZE_PX, working_frames

RAFT_FILE = "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
RAFT_URL = f"https://download.pytorch.org/models/{RAFT_FILE}"
RAFT_FOLDER = "optical_flow"
RAFT_LARGE = Architecture(
    name="RAFT-large (torchvision)",
    required={
        "feature_encoder.convnormrelu.": "the feature encoder",
        "update_block.recurrent_block.convgru2.": "the second recurrent unit, which RAFT-small lacks",
        "mask_predictor.": "the upsampling mask",
    },
    looks_like=[
        (["feature_encoder.", "update_block.recurrent_block.convgru1."], "torchvision's RAFT-small"),
        (["module.fnet.", "module.cnet."], "the original RAFT release; torchvision's conversion is needed"),
        (["fnet.", "cnet."], "the original RAFT release; torchvision's conversion is needed"),
    ],
)
SHORT_SIDE_PX = 256


@dataclass(frozen=True)
class FlowEstimator:
    """One way to estimate flow, and the images it works on.

    Attributes:
        name: what reports call it.
        is_raft: whether MAWE is defined on it.
        estimate: two times `[P, 3, H, W]` on the scale 0..255 to flow `[P, 2, H, W]` in pixels, x first.
        pairs_per_call: how many pairs `estimate` should get at once.
    """

    name: str
    is_raft: bool
    estimate: Callable[[Tensor, Tensor], Tensor]
    pairs_per_call: int = 8

    def working_frames(self, frames: Tensor) -> Tensor:
        """Frames `[F, 3, H, W]` in 0..1 as this estimator wants them, on the scale 0..255."""
        return working_frames(frames) if self.is_raft else small_frames(frames)

    def flow(self, left: Tensor, right: Tensor) -> Tensor:
        """Flow of all pairs, `[P, 2, H, W]`, a few pairs at a time."""
        size = self.pairs_per_call
        return torch.cat([self.estimate(*pair) for pair in zip(left.split(size), right.split(size), strict=True)])


def small_size(height: int, width: int, short_side_px: int = SHORT_SIDE_PX) -> tuple[int, int]:
    """Height and width with the shorter side at most `short_side_px`, both multiples of 8 where there is room."""
    scale = min(1.0, short_side_px / min(height, width))
    rows, columns = (max(8, round(side * scale / 8) * 8) for side in (height, width))
    return rows, columns


def small_frames(frames: Tensor) -> Tensor:
    """Frames `[F, 3, H, W]` in 0..1 made small, antialiased, on the scale 0..255."""
    size = small_size(*frames.shape[-2:])
    frames = frames.float()
    if frames.shape[-2:] != size:
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)
    return frames.clamp(0, 1) * 255


def classical_flow() -> FlowEstimator:
    """The weight-free fallback: pyramidal Lucas-Kanade on small frames."""
    return FlowEstimator(
        name="Lucas-Kanade (weight-free fallback)",
        is_raft=False,
        estimate=lambda left, right: lucas_kanade(left / 255, right / 255),
    )


def raft_estimator(network: Callable[[Tensor, Tensor], Tensor]) -> FlowEstimator:
    """RAFT-large at 720x720, the flow MAWE is defined on.

    Args:
        network: `(left, right)`, `[P, 3, H, W]` in -1..1 each, to the final flow `[P, 2, H, W]`.
    """
    return FlowEstimator(
        name=f"RAFT-large at {SIZE_PX}x{SIZE_PX}",
        is_raft=True,
        estimate=lambda left, right: network(left / 127.5 - 1, right / 127.5 - 1),
        pairs_per_call=1,
    )


def empty_raft() -> nn.Module:
    """torchvision's RAFT-large without weights, in evaluation mode.

    Raises:
        StreamingError: torchvision is not installed or cannot be loaded.
    """
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError) as error:
        raise StreamingError(
            f"RAFT needs torchvision, which does not load ({error}); install one for your torch"
        ) from error
    return raft_large(weights=None, progress=False).eval()


def build_raft(tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """RAFT-large with `tensors`, loaded strictly; `source` names the file in errors.

    Raises:
        WrongCheckpointError, IncompleteCheckpointError: the weights are of something else, or not whole.
    """
    RAFT_LARGE.check(tensors, source)
    network = empty_raft()
    load_strict(network, tensors, f"RAFT-large from {source}")
    return network.requires_grad_(False)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a pickle, read without running any code of the file.

    Raises:
        CheckpointError: missing, cut off, or not a file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; download {RAFT_URL} and put it there")
    refuse_other_content(str(path))
    try:
        if is_safetensors(str(path)):
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a file of weights ({error}); download it again") from error
    return state_dict_of(content, str(path))


def load_raft(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> FlowEstimator:
    """RAFT-large from a weights file, on `device`; see docs/checkpoints.md for the file."""
    tensors, _ = plain_weights(read_weights(path), str(path))
    weights = named_weights(tensors, (RAFT_LARGE,), str(path), RAFT_LARGE)
    network = build_raft(weights.tensors, str(path)).to(device)
    return raft_estimator(lambda left, right: network(left, right)[-1])

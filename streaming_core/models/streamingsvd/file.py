"""The parts of a StreamingSVD file: which key belongs to which network, none left over (reference: streamingsvd, 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import CheckpointError
from ..registry import take
from .detect import (
    ARCHITECTURE,
    CAM_PREFIX,
    CLIP_VISION_PREFIX,
    FIRST_STAGE_PREFIX,
    IMAGE_ENCODER_PREFIX,
    MERGER_PREFIX,
    UNET_PREFIX,
)

Tensors = Mapping[str, Tensor]
_MERGER_STEM = MERGER_PREFIX.removeprefix(UNET_PREFIX)


def unet_weights(tensors: Tensors) -> dict[str, Tensor]:
    """The plain video UNet's tensors, keyed as SVD's."""
    return {k: tensor for k, tensor in take(tensors, UNET_PREFIX).items() if not k.startswith(_MERGER_STEM)}


def cam_weights(tensors: Tensors) -> dict[str, Tensor]:
    """The CAM network's tensors, keyed as `network.CamNetwork`."""
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(CAM_PREFIX)}
    own.update({k: tensor for k, tensor in take(tensors, UNET_PREFIX).items() if k.startswith(_MERGER_STEM)})
    return own


def split_vae_weights(tensors: Tensors) -> dict[str, Tensor]:
    """Encoder and quant_conv of the image-conditioning VAE with the decoder of the first-stage VAE."""
    image = take(tensors, IMAGE_ENCODER_PREFIX)
    own = {key: tensor for key, tensor in image.items() if key.startswith(("encoder.", "quant_conv."))}
    own.update({f"decoder.{key}": tensor for key, tensor in take(tensors, FIRST_STAGE_PREFIX + "decoder.").items()})
    return own


@dataclass(frozen=True)
class StreamingSVDWeights:
    """All used tensors of a file by network, and the keys nothing reads with the reason."""

    unet: dict[str, Tensor]
    cam: dict[str, Tensor]
    vae: dict[str, Tensor]
    clip_vision: dict[str, Tensor]
    unused: dict[str, str]


def split_file(tensors: Tensors, source: str) -> StreamingSVDWeights:
    """Sort a file's tensors by network. Raises `CheckpointError` when a key belongs to none and is not known unused."""
    encoder = (IMAGE_ENCODER_PREFIX + "encoder.", IMAGE_ENCODER_PREFIX + "quant_conv.")
    used = (UNET_PREFIX, CAM_PREFIX, CLIP_VISION_PREFIX, FIRST_STAGE_PREFIX + "decoder.", *encoder)
    rest = [key for key in tensors if not key.startswith(used)]
    unused = {key: reason for key in rest if (reason := ARCHITECTURE.unused_reason(key)) is not None}
    unknown = [key for key in rest if key not in unused]
    if unknown:
        raise CheckpointError(
            f"{source} has {len(unknown)} keys that StreamingSVD does not know (first {', '.join(unknown[:3])}); "
            "use the official file"
        )
    return StreamingSVDWeights(
        unet=unet_weights(tensors),
        cam=cam_weights(tensors),
        vae=split_vae_weights(tensors),
        clip_vision=take(tensors, CLIP_VISION_PREFIX),
        unused=unused,
    )

"""One `streaming_t2v.ckpt` taken apart into what each network loads (reference: streamingmodelscope, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

from ..registry import IncompleteCheckpointError, Value, take
from .detect import (
    APM_PREFIX,
    ARCHITECTURE,
    CAM_PREFIX,
    CLIP_VISION_PREFIX,
    MERGER_STEM,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
)

READ_PREFIXES = (UNET_PREFIX, CAM_PREFIX, APM_PREFIX, CLIP_VISION_PREFIX, TEXT_PREFIX, VAE_PREFIX)
"""Prefixes below which every key belongs to a network."""


def unet_part(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The UNet's entries, mixers included and CAM mergers not, keyed as in `VideoUNet`."""
    return {key: value for key, value in take(tensors, UNET_PREFIX).items() if not key.startswith(MERGER_STEM)}


def cam_part(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The entries of the CAM branch and of the mergers, keyed as in `ModelscopeCam`."""
    branch = {key: value for key, value in tensors.items() if key.startswith(CAM_PREFIX)}
    mergers = {key: value for key, value in take(tensors, UNET_PREFIX).items() if key.startswith(MERGER_STEM)}
    return branch | mergers


def unread_keys(tensors: Mapping[str, Value]) -> list[str]:
    """Keys that no network of the file reads and that are not known to be unused."""
    return [k for k in tensors if not k.startswith(READ_PREFIXES) and ARCHITECTURE.unused_reason(k) is None]


def refuse_unread(tensors: Mapping[str, Value], source: str) -> None:
    """Raise `IncompleteCheckpointError` when the file holds keys that nothing reads."""
    unread = unread_keys(tensors)
    if unread:
        raise IncompleteCheckpointError(
            f"{source} holds {len(unread)} keys unknown to StreamingModelscope (first {', '.join(unread[:3])}); "
            "use the official file"
        )

"""What a run was made with: models, conditionings, samplers, flags; readable, by content, the same after a restart.

    identity = identities(model=model, vae=vae, sampler=sampler)
    with watch(model, sampler):
        ...  # sample

`streaming_core.identity` compares two of them and says in words what changed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....streaming_core.identity import Plain
from .describer import STATE
from .flags import start_flags_identity
from .identities import fields_identity, identities, identity_of, watch

__all__ = [
    "STATE",
    "conditioning_identity",
    "fields_identity",
    "identities",
    "identity_of",
    "image_identity",
    "model_identity",
    "sampler_identity",
    "start_flags_identity",
    "watch",
]


def model_identity(patcher: Any) -> Plain:
    """A MODEL, VAE, CLIP, CLIP_VISION, STREAMING_CAM or STREAMING_APM with all its patches."""
    return identity_of(patcher)


def _with_names(conditioning: Any) -> Any:
    """Texts and options of a conditioning by name."""
    return [{**options, "text": text} for text, options in conditioning]


def conditioning_identity(conditioning: Any) -> Plain:
    """A CONDITIONING: its texts, and all their options by name."""
    return identity_of(_with_names(conditioning))


def sampler_identity(sampler: Any) -> Plain:
    """A SAMPLER (or a guider) with all its options."""
    return identity_of(sampler)


def image_identity(image: Tensor) -> Plain:
    """An image, a latent, sigmas or any other tensor by its values."""
    return identity_of(image)

"""Decoding latents of a temporal VAE in fixed groups (reference: streamingsvd, sections 9 and 11.5).

The decoder sees each group as one video, so the grouping decides the result. It must never follow free memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import SettingsError

Grouping = Literal["overlapping", "official"]
GROUP_FRAMES = 8
CONTEXT_FRAMES = 1


@dataclass(frozen=True)
class DecodeGroup:
    """Latent frames `start..stop` are decoded together; of the result, frames `keep_start..keep_stop` are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def official_groups(num_frames: int, first: int) -> list[DecodeGroup]:
    """Consecutive groups without overlap over all frames, less those that end before `first`.

    25 frames give 8, 8, 8, 1: the last frame is decoded on its own, as in the official program.
    """
    _check(num_frames, first)
    groups = [(start, min(start + GROUP_FRAMES, num_frames)) for start in range(0, num_frames, GROUP_FRAMES)]
    return [DecodeGroup(start, stop, max(start, first), stop) for start, stop in groups if stop > first]


def overlapping_groups(
    num_frames: int, first: int, size: int = GROUP_FRAMES, context: int = CONTEXT_FRAMES
) -> list[DecodeGroup]:
    """Groups of `size` that keep their center: a kept frame has `context` neighbors on each side where there are.

    Only groups that frames from `first` on need are made; the last moves back to be whole.
    """
    _check(num_frames, first)
    groups: list[DecodeGroup] = []
    kept = first
    while kept < num_frames:
        start = max(0, kept - context)
        stop = min(start + size, num_frames)
        start = max(0, stop - size)
        keep_stop = num_frames if stop == num_frames else stop - context
        groups.append(DecodeGroup(start, stop, kept, keep_stop))
        kept = keep_stop
    return groups


def _check(num_frames: int, first: int) -> None:
    if not 0 <= first < num_frames:
        raise SettingsError(f"cannot decode frames from {first} of {num_frames}")


GROUPINGS: dict[str, Callable[[int, int], list[DecodeGroup]]] = {
    "overlapping": overlapping_groups,
    "official": official_groups,
}


def decode_from(
    latents: Tensor, first: int, grouping: Grouping, decode: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """Decoded frames `first..` of `latents` `[F, C, h, w]`, group by group.

    `decode` takes `[n, C, h, w]` as one video and returns `[n, ...]`.
    """
    if grouping not in GROUPINGS:
        raise SettingsError(f"decode grouping must be one of {', '.join(GROUPINGS)}, got {grouping!r}")
    for group in GROUPINGS[grouping](latents.shape[0], first):
        frames = decode(latents[group.start : group.stop])
        yield frames[group.keep_start - group.start : group.keep_stop - group.start]


def decode_all(latents: Tensor, first: int, grouping: Grouping, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """`decode_from`, joined: `[F - first, ...]`."""
    return torch.cat(list(decode_from(latents, first, grouping, decode)))

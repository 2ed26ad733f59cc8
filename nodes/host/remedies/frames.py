"""Remedies of families whose tail is frames that a model is shown: two fields, and what follows from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ....streaming_core.loop.chunk import Chunk
from ....streaming_core.loop.plan import VideoPlan
from ....streaming_core.loop.remedies import Perturbation, PreviousGuidance, perturbed_frames
from ....streaming_core.loop.sampler import ChunkSampler, Size
from ..identity import fields_identity
from .guidance import Blind, against_previous
from .steps import SigmaRange, check_steps


@dataclass(frozen=True)
class ShownTail:
    """The tail as the steps of a chunk are shown it: `frames`, or within `steps` those `perturbed`, if any."""

    frames: Tensor
    perturbed: Tensor | None = None
    steps: SigmaRange = SigmaRange()


@dataclass(frozen=True, kw_only=True)
class FrameRemedies(ChunkSampler):
    """A chunk sampler that can be shown a perturbed tail in a part of its steps, and guided against the tail."""

    perturbation: Perturbation = Perturbation()
    guidance: PreviousGuidance = PreviousGuidance()

    @abstractmethod
    def remedied(self) -> tuple[ModelPatcher, Tensor]:
        """MODEL and SIGMAS of chunks that have a tail."""

    def with_perturbed_tail(self, perturbation: Perturbation) -> FrameRemedies:
        return replace(self, perturbation=perturbation)

    def with_previous_guidance(self, guidance: PreviousGuidance) -> FrameRemedies:
        return replace(self, guidance=guidance)

    def blind_calls(self, chunk: Chunk) -> int:
        if not chunk.index or not self.guidance.at(chunk.index):
            return 0
        model, sigmas = self.remedied()
        return SigmaRange.of(model, self.guidance).count(sigmas)

    def accept(self, plan: VideoPlan) -> VideoPlan:
        plan = super().accept(plan)
        check_steps(*self.remedied(), self.perturbation, self.guidance)
        return plan

    def accept_gap(self, chunk: Chunk, size: Size) -> None:
        super().accept_gap(chunk, size)
        for remedy in (self.perturbation, self.guidance):
            if remedy.is_on:
                raise SettingsError(
                    f"{remedy.node} has no effect between two keyframes, where nothing has a tail; connect the chunk "
                    "sampler without it"
                )

    def other_fields_identity(self, *left_out: str) -> dict[str, Any]:
        """`fields_identity` with the perturbed tail where there is one; the guidance decides single chunks."""
        tail = self.perturbation.identity("level")
        return {
            **fields_identity(self, "perturbation", "guidance", *left_out),
            **({"perturbed_tail": tail} if tail else {}),
        }

    def guidance_identity(self, chunk: Chunk) -> Mapping[str, Any]:
        """The guidance of one chunk, where it has any."""
        weight = self.guidance.at(chunk.index) if chunk.index else 0.0
        of_chunk = PreviousGuidance(weight, 0.0, self.guidance.start, self.guidance.end).identity("weight")
        return {"previous_guidance": of_chunk} if of_chunk else {}

    def shown(self, chunk: Chunk, tail: Tensor) -> ShownTail:
        """What a chunk is shown of the frames `tail` `[k, 3, H, W]`."""
        level = self.perturbation.at(chunk.index)
        if not level:
            return ShownTail(tail)
        perturbed = perturbed_frames(tail, level, chunk)
        if self.perturbation.is_whole:
            return ShownTail(perturbed)
        return ShownTail(tail, perturbed, SigmaRange.of(self.remedied()[0], self.perturbation))

    def guided(self, model: ModelPatcher, chunk: Chunk, blind: Blind) -> ModelPatcher:
        """`model` with the guidance of a chunk that has a tail."""
        steps = SigmaRange.of(model, self.guidance)
        return against_previous(model, self.guidance.at(chunk.index), steps, blind)

"""What fills a gap: the model call for a stride, which frames are kept, and what is refused before it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from streaming_core.color.anchor import ColorAnchor
from streaming_core.errors import SettingsError
from streaming_core.interpolation.stream import InterpolationModel
from streaming_core.loop.chunk import Chunk
from streaming_core.loop.fillers import InterpolatedGaps, SampledGaps
from streaming_core.loop.hierarchy import GapPlan
from streaming_core.loop.plan import VideoPlan
from streaming_core.loop.sampler import ChunkSampler, PerturbedTail, WrappedSampler
from streaming_core.loop.script import Script, parse_cues


@dataclass(frozen=True)
class Filling(ChunkSampler):
    """Makes lengths `unit * n + 1` of at least `least`; frame k of a call has the value k everywhere."""

    unit: int = 1
    least: int = 2
    calls: list[Chunk] = field(default_factory=list, compare=False)

    family = "filling"
    fills = True
    follows = frozenset({"prompt"})
    size_multiple = 8  # type: ignore[assignment]

    def identity(self) -> dict:
        return {"unit": self.unit}

    def steps(self, chunk: Chunk) -> int:
        return 2

    def fit_gap(self, num_frames: int) -> int:
        wanted = max(num_frames, self.least)
        return -(-(wanted - 1) // self.unit) * self.unit + 1

    def fill(self, first: Tensor, last: Tensor, chunk: Chunk) -> Tensor:
        self.calls.append(chunk)
        return torch.arange(chunk.num_frames).float().reshape(-1, 1, 1, 1).expand(-1, *first.shape[1:])

    def first_chunk(self, chunk, size, image):
        raise NotImplementedError

    def sample_chunk(self, chunk, tail, anchor):
        raise NotImplementedError

    def decode(self, latents, chunk, tail):
        raise NotImplementedError


FRAME = torch.zeros(1, 3, 8, 16)


@pytest.mark.parametrize(
    ("unit", "least", "stride", "length"),
    [
        (1, 2, 4, 5),
        (4, 2, 4, 5),
        (4, 2, 2, 5),
        (4, 2, 3, 13),
        (4, 2, 6, 13),
        (8, 2, 3, 25),
        (8, 2, 16, 17),
        (4, 81, 10, 81),
    ],
)
def test_the_shortest_call_with_every_frame_in_it(unit, least, stride, length, caplog):
    caplog.set_level(logging.INFO)
    filler = SampledGaps(Filling(unit, least), stride)
    assert filler.model_frames == length and (length - 1) % stride == 0
    plan = GapPlan(2 * stride + 1, stride, filler.model_frames)
    filler.accept(plan, (8, 16))
    step = (length - 1) // stride
    assert (f"one of {step} is kept" in caplog.text) == (step > 1)
    frames = filler.fill(FRAME, FRAME, plan.chunk(1))
    assert frames[:, 0, 0, 0].tolist() == [step * index for index in range(1, stride)]
    assert filler.sampler.calls[0].num_frames == length


def test_the_shortest_call_is_found_exactly():
    for unit in range(1, 13):
        for least in (2, 5, 17):
            sampler = Filling(unit, least)
            makes = [length for length in range(2, 600) if sampler.fit_gap(length) == length]
            for stride in range(2, 20):
                possible = [length for length in makes if length <= 8 * stride + 1 and (length - 1) % stride == 0]
                if possible:
                    assert SampledGaps(sampler, stride).model_frames == possible[0]
                else:
                    with pytest.raises(SettingsError, match=f"no length that has gaps of stride {stride} in it"):
                        SampledGaps(sampler, stride)


def test_strides_that_fit_are_named():
    with pytest.raises(SettingsError, match="^filling makes no length that has gaps of stride 3 in it; use stride "):
        SampledGaps(Filling(80, 81), 3)
    with pytest.raises(SettingsError, match="use stride 10 or 16 or 20$"):
        SampledGaps(Filling(80, 81), 3)
    with pytest.raises(SettingsError, match="use an interpolation model"):
        SampledGaps(Filling(4000, 4001), 3)


class Unable(Filling):
    family = "unable"
    fills = False


def accept(sampler: ChunkSampler, size=(8, 16), keyframes: VideoPlan | None = None) -> None:
    filler = SampledGaps(sampler, 4)
    filler.accept(GapPlan(9, 4, filler.model_frames, keyframes=keyframes), size)


def test_what_cannot_be_filled_is_refused():
    for sampler in (Unable(), WrappedSampler(Unable())):
        with pytest.raises(SettingsError, match="^unable cannot fill a gap between two frames; connect "):
            SampledGaps(sampler, 4)
        with pytest.raises(SettingsError, match="unable cannot fill"):
            sampler.accept_gap(GapPlan(9, 4, 5).chunk(0), (8, 16))
    with pytest.raises(SettingsError, match="unable cannot fill"):
        ChunkSampler.fill(Unable(), FRAME, FRAME, GapPlan(9, 4, 5).chunk(0))
    accept(Filling())
    accept(WrappedSampler(Filling()))
    with pytest.raises(SettingsError, match="width must be a multiple of 8 pixels, got 20; try 16"):
        accept(Filling(), (8, 20))
    with pytest.raises(SettingsError, match="height must be a multiple of 8 pixels, got 4; try 8"):
        accept(Filling(), (4, 16))
    for wrapped, name in ((PerturbedTail(Filling(), 0.1), "Perturb Tail"), (ColorAnchor(Filling()), "Color Anchor")):
        for outer in (wrapped, WrappedSampler(wrapped)):
            with pytest.raises(SettingsError, match=f"^{name} has no effect between two keyframes"):
                accept(outer)


def test_cues_are_followed_or_refused():
    plan = VideoPlan(3, 2, 1, script=Script(prompts=parse_cues("0: a dog\n1: a cat")))
    accept(Filling(), keyframes=plan)

    class Mute(Filling):
        follows = frozenset()

    with pytest.raises(SettingsError, match="filling cannot follow the plan's prompt"):
        accept(Mute(), keyframes=plan)
    filler = SampledGaps(Filling(), 4)
    gaps = GapPlan(9, 4, 5, seed=7, keyframes=plan)
    assert filler.gap_identity(gaps.chunk(1)) == {"prompt": "a cat", "seed": 7, "index": 1}


def test_frames_of_another_shape_are_refused():
    class Wrong(Filling):
        def fill(self, first, last, chunk):
            return super().fill(first, last, chunk)[1:]

    filler = SampledGaps(Wrong(), 4)
    with pytest.raises(SettingsError, match=r"shape \[4, 3, 8, 16\] between two keyframes, \[5, 3, 8, 16\]"):
        filler.fill(FRAME, FRAME, GapPlan(9, 4, 5).chunk(0))


class Mixing:
    """An interpolation network that mixes its two frames."""

    def memory_used_forward(self, shape, dtype):
        return 1

    def extract_features(self, img):
        return None

    def __call__(self, img0, img1, timestep, cache):
        return img0 + (img1 - img0) * timestep


class Bar:
    def __init__(self):
        self.done = 0

    def advance(self, steps=1, preview=None):
        self.done += steps


@pytest.mark.parametrize("stride", [2, 3, 8])
def test_an_interpolation_network_fills_evenly(stride):
    bar = Bar()
    filler = InterpolatedGaps(InterpolationModel(Mixing()), {"network": "mixing"}, stride).with_progress(bar)
    chunk = GapPlan(2 * stride + 1, stride, stride + 1).chunk(1)
    frames = filler.fill(FRAME + 0.2, FRAME + 0.22, chunk)
    expected = torch.tensor([0.2 + 0.02 * part / stride for part in range(1, stride)])
    assert frames.shape == (stride - 1, 3, 8, 16) and torch.allclose(frames[:, 0, 0, 0], expected)
    assert bar.done == filler.steps(chunk) == stride - 1
    assert filler.gap_identity(chunk) == {"index": 1}, "no seed: it makes the same every time"
    assert filler.identity()["interp_model"] == {"network": "mixing"}


def test_a_scene_cut_is_held():
    filler = InterpolatedGaps(InterpolationModel(Mixing()), {}, 4)
    one = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.2
    two = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.8
    frames = filler.fill(one, two, GapPlan(5, 4, 5).chunk(0))
    assert torch.equal(frames, torch.cat([one, two, two])), "the nearer keyframe each"


def test_a_plan_has_no_effect_on_an_interpolation_network():
    filler = InterpolatedGaps(InterpolationModel(Mixing()), {}, 4)
    filler.accept(GapPlan(5, 4, 5), (8, 16))
    with pytest.raises(SettingsError, match="plan has no effect with interp_model"):
        filler.accept(GapPlan(5, 4, 5, keyframes=VideoPlan(2, 2, 1, fps=Fraction(3))), (8, 16))

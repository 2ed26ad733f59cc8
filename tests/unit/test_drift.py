"""Color anchoring on videos whose drift is known, and on videos that only move."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from streaming_core.color.anchored import AnchoredFrames
from streaming_core.color.drift import LEAST_LAB, Reference, find_correction, lab_planes, measure
from streaming_core.color.lab import lab_to_srgb, srgb_to_lab
from streaming_core.frames import TensorFrames
from streaming_core.loop.chunk_layout import lay_out
from streaming_core.metrics.color import color_drift, frame_colors

CHUNKS, FRAMES, HEIGHT, WIDTH = 20, 6, 40, 64


def texture(seed=0, height=HEIGHT, width=WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for number, cells in enumerate((4, 9, 20)):
        noise = torch.rand(1, 3, cells, cells * 2, generator=generator)
        image = image + functional.interpolate(noise, (height, width), mode="bicubic") * 0.6**number
    image = (image - image.min()) / (image.max() - image.min())
    return image[0] * 0.6 + 0.2


def still(time):
    return texture()


def moving(time):
    """Something red goes round in front."""
    image = texture().clone()
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    center = HEIGHT * (0.5 + 0.3 * math.sin(time * 0.13)), WIDTH * (0.5 + 0.35 * math.cos(time * 0.07))
    image[:, (y - center[0]) ** 2 + (x - center[1]) ** 2 < (HEIGHT * 0.22) ** 2] = torch.tensor([[0.7], [0.3], [0.25]])
    return image


def turning(time):
    """The camera turns round and comes back: every place changes."""
    return torch.roll(texture(), time, 2)


def entering(time):
    """Something bright comes in and covers a quarter."""
    image = texture().clone()
    wide = max(0, min(WIDTH // 3, 2 * (time - 20)))
    if wide:
        image[:, HEIGHT // 4 :, WIDTH - wide :] = torch.tensor([0.95, 0.9, 0.3]).view(3, 1, 1)
    return image


def grainy(time):
    noise = torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(time))
    return (texture() + 0.04 * noise).clamp(0, 1)


def video(scene, chunk):
    return torch.stack([scene(time) for time in range(chunk * FRAMES, (chunk + 1) * FRAMES)])


def in_lab(frames, change):
    return lab_to_srgb(srgb_to_lab(frames.movedim(1, -1)) + change).movedim(-1, 1)


def stepwise(frames, chunk):
    return in_lab(frames, chunk * torch.tensor([0.5, 0.35, -0.3]))


def gradual(frames, chunk):
    time = torch.arange(len(frames)) / len(frames) + chunk - 1
    return in_lab(frames, time.view(-1, 1, 1, 1) * torch.tensor([0.5, 0.35, -0.3]))


def tinted(frames, chunk):
    return (frames + chunk * torch.tensor([0.006, 0.002, -0.004]).view(3, 1, 1)).clamp(0, 1)


def brighter(frames, chunk):
    return frames * (1 + 0.01 * chunk)


def reference(scene):
    return Reference.of(measure(lab_planes(video(scene, 0))), LEAST_LAB)


def anchored(frames, known, chunk, strength=1.0):
    return find_correction(measure(lab_planes(frames)), known, chunk, strength).apply_to_frames(frames)


def color(frames):
    return srgb_to_lab(frames.movedim(1, -1)).mean((0, 1, 2))


@pytest.mark.parametrize("drift", [stepwise, gradual, tinted, brighter])
@pytest.mark.parametrize("scene", [still, moving, turning, grainy])
def test_nine_tenths_of_a_known_drift_go_away_over_twenty_chunks(scene, drift):
    known, before, after = reference(scene), [], []
    for chunk in range(1, CHUNKS):
        clean = video(scene, chunk)
        drifted = drift(clean, chunk)
        before.append(float((color(drifted) - color(clean)).norm()))
        after.append(float((color(anchored(drifted, known, chunk)) - color(clean)).norm()))
    assert before[-1] > 6  # a drift that everyone sees
    assert sum(after) < 0.1 * sum(before) and after[-1] < 0.1 * before[-1]


@pytest.mark.parametrize("scene", [still, moving, turning, entering, grainy])
def test_a_video_without_drift_is_not_touched(scene):
    known = reference(scene)
    for chunk in range(1, CHUNKS):
        frames = video(scene, chunk)
        assert (anchored(frames, known, chunk) - frames).abs().max() < 1 / 255


def test_every_frame_comes_back_not_only_the_average():
    known = reference(still)
    drifted = gradual(video(still, 15), 15)
    assert (drifted - video(still, 15)).abs().max() > 15 / 255
    assert (anchored(drifted, known, 15) - video(still, 15)).abs().max() < 1 / 255


def test_half_the_strength_removes_half():
    known = reference(still)
    drifted = stepwise(video(still, 12), 12)
    moved = color(anchored(drifted, known, 12, 0.5)) - color(drifted)
    assert torch.allclose(moved, (color(video(still, 12)) - color(drifted)) / 2, atol=0.05)


def test_contrast_comes_back():
    known = reference(still)
    frames = video(still, 9)
    flat = 0.5 + (frames - 0.5) * 0.8
    error = (anchored(flat, known, 9) - frames).abs().mean() / (flat - frames).abs().mean()
    assert error < 0.15


@given(st.tuples(*[st.floats(0, 1)] * 3))
@settings(max_examples=200)
def test_lab_and_back(color):
    rgb = torch.tensor(color, dtype=torch.float64)
    assert torch.allclose(lab_to_srgb(srgb_to_lab(rgb)).double(), rgb, atol=2e-4)


def test_a_reference_survives_as_one_tensor():
    known = reference(moving)
    again = Reference.from_tensor(known.to_tensor())
    drifted = stepwise(video(moving, 5), 5)
    assert torch.equal(anchored(drifted, again, 5), anchored(drifted, known, 5))


def test_latents_are_served_channel_by_channel():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 16, 20, 32, generator=generator).repeat(5, 1, 1, 1)
    drift = torch.linspace(-0.5, 0.5, 16).view(16, 1, 1)
    found = find_correction(measure(clean + drift), Reference.of(measure(clean)), 3)
    assert (found.apply(clean + drift) - clean).abs().max() < 0.03
    assert find_correction(measure(clean), Reference.of(measure(clean)), 3).is_nothing


def whole_video(scene, drift=None):
    chunks = [video(scene, number) for number in range(CHUNKS)]
    parts = [drift(chunk, number) if drift and number else chunk for number, chunk in enumerate(chunks)]
    return torch.cat(parts).movedim(1, -1)


def test_a_stream_is_the_same_in_any_slices_and_measures_without_drift():
    layout = lay_out(CHUNKS * FRAMES, (FRAMES,))
    source = TensorFrames(whole_video(moving, stepwise), Fraction(12))
    stream = AnchoredFrames(source, layout)
    once = stream.read(0, len(stream))
    late = AnchoredFrames(source, layout).read(100, 107)
    assert torch.equal(late, once[100:107])
    assert torch.equal(once[:FRAMES], source.read(0, FRAMES))
    drift = [color_drift(*frame_colors(frames), layout).chunk_drift[-1] for frames in (source.images, once)]
    clean = color_drift(*frame_colors(whole_video(moving)), layout).chunk_drift[-1]
    assert drift[0] > 6 and abs(drift[1] - clean) < 0.1 * drift[0]


def test_from_a_cut_on_nothing_is_changed():
    frames = whole_video(still, stepwise)
    other = texture(7).movedim(0, -1)
    frames[10 * FRAMES + 2 :] = (other * 0.5 + 0.4).clamp(0, 1)
    source = TensorFrames(frames, Fraction(12))
    stream = AnchoredFrames(source, lay_out(CHUNKS * FRAMES, (FRAMES,)))
    video_ = stream.read(0, len(stream))
    assert torch.equal(video_[10 * FRAMES :], frames[10 * FRAMES :])
    assert not torch.equal(video_[9 * FRAMES : 10 * FRAMES], frames[9 * FRAMES : 10 * FRAMES])
    blind = AnchoredFrames(source, stream.layout, cut_threshold=0.0)
    assert not torch.equal(blind.read(11 * FRAMES, 12 * FRAMES), frames[11 * FRAMES : 12 * FRAMES])

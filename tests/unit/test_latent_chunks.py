"""Latents that stand for several frames: lengths, tails, and decoding in groups as if it were one clip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.loop.latent_layout import LatentLayout, clip_groups, decode_clip, held_mask, perturb
from streaming_core.loop.plan import VideoPlan

causal = st.builds(LatentLayout, st.sampled_from([1, 4, 6, 8]), st.just(2))
layouts = causal | st.just(LatentLayout(4, 2, 4))


@given(layouts, st.integers(-5, 400))
def test_nearest_lengths_are_valid_and_none_is_nearer(layout, frames):
    nearest = layout.nearest(frames)
    assert nearest >= 1 and layout.frames(layout.latents(nearest)) == nearest
    assert nearest >= layout.first_frames
    if frames >= layout.first_frames:
        assert abs(nearest - frames) * 2 <= layout.frames_per_latent


@given(layouts, st.integers(2, 200), st.integers(1, 200))
def test_fitted_lengths_make_videos_of_every_length(layout, chunk_frames, overlap_frames):
    chunk, overlap = layout.fit(chunk_frames, overlap_frames)
    new_latents = layout.latents(chunk) - layout.latents(overlap)
    assert new_latents >= 1 and new_latents * layout.frames_per_latent == chunk - overlap
    plan = VideoPlan(1000, chunk, overlap)
    assert sum(each.new_frames for each in plan.chunks) == 1000


def test_a_length_between_two_is_refused_with_both():
    with pytest.raises(SettingsError, match="4n\\+1.*9 and 13 are nearest"):
        LatentLayout(4, 2).latents(12)
    with pytest.raises(SettingsError, match="1 and 9"):
        LatentLayout(8, 2).latents(7)
    with pytest.raises(SettingsError, match="4n frames.*4 and 8 are nearest"):
        LatentLayout(4, 2, 4).latents(6)
    with pytest.raises(SettingsError, match="4 and 4 are nearest"):
        LatentLayout(4, 2, 4).latents(3)
    assert LatentLayout(1, 0).latents(7) == 7 and LatentLayout(4, 2, 4).latents(16) == 4


def numbered(layout, start, stop):
    """Latents that hold their number in the video."""
    shape = (1, 1, stop - start, 1, 1) if layout.axis == 2 else (stop - start, 1, 1, 1)
    return torch.arange(start, stop, dtype=torch.float32).view(shape)


def decoder(layout, seen):
    """As a causal autoencoder: one frame for a clip's first latent, which is told from the others by a minus sign."""

    def decode(latents):
        seen.append(latents.numel())
        frames = [-latents.flatten()[:1] - 1]
        frames += [
            value + torch.arange(layout.frames_per_latent) / layout.frames_per_latent for value in latents.flatten()[1:]
        ]
        return torch.cat(frames)

    return decode


@given(causal, st.integers(1, 12), st.integers(1, 60), st.integers(1, 30))
def test_groups_after_a_tail_give_its_continuation(layout, known, new, group):
    latents = numbered(layout, 0, known + new)
    seen = []
    frames = torch.cat(list(decode_clip(layout, latents, known, decoder(layout, seen), group)))
    steps = torch.arange(new * layout.frames_per_latent)
    assert torch.allclose(frames, known + steps / layout.frames_per_latent)
    assert max(seen) <= group + layout.context


@given(causal, st.integers(1, 60), st.integers(1, 30))
def test_groups_of_a_beginning_give_the_whole_clip(layout, count, group):
    latents = numbered(layout, 0, count)
    whole = decoder(layout, [])(latents)
    assert torch.equal(torch.cat(list(decode_clip(layout, latents, 0, decoder(layout, []), group))), whole)


def test_groups_of_34_latents_after_8():
    groups = [(part.start, part.stop, part.keep) for part in clip_groups(LatentLayout(4, 2), 34, 8, 24)]
    assert groups == [(0, 32, 96), (24, 34, 8)]


def test_a_decoder_of_another_model_is_named():
    with pytest.raises(SettingsError, match="3 latents decode to 3 frames, 9 were expected"):
        list(decode_clip(LatentLayout(4, 2), numbered(LatentLayout(4, 2), 0, 3), 0, lambda x: torch.zeros(3)))


@given(causal, st.integers(1, 9), st.integers(1, 9))
def test_the_tail_is_the_end_and_owns_its_memory(layout, count, size):
    latents = numbered(layout, 0, size)
    tail = layout.last(latents, count)
    assert tail.flatten().tolist() == list(range(max(0, size - count), size))
    latents.zero_()
    assert tail.flatten()[-1] == size - 1


def test_the_mask_holds_the_first():
    assert held_mask(LatentLayout(4, 2), 4, 2).flatten().tolist() == [0, 0, 1, 1]
    assert held_mask(LatentLayout(1, 0), 3, 1).shape == (3, 1, 1, 1)


@pytest.mark.parametrize("level", [0.0, 0.05, 0.455])
def test_perturbed_latents_keep_their_variance_and_have_the_level(level):
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(100_000, generator=generator) for _ in range(2))
    mixed = perturb(latents, level, noise)
    assert abs(mixed.var().item() - 1) < 0.02
    signal = 1 / (1 + level**2) ** 0.5
    assert torch.allclose(mixed, signal * latents + signal * level * noise, atol=1e-6)

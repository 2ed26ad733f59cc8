"""Videos for training: the same for the same seed, and doing what their description says."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_core.errors import SettingsError
from streaming_core.frames import write_video
from training import __main__ as command
from training.footage import FolderSource, VideoSource
from training.videos import (
    COLORS,
    HEADINGS,
    HELD_OUT,
    NARROW_SPEED,
    SHAPES,
    TEXTURES,
    VARIETIES,
    Background,
    Bounce,
    Orbit,
    Sprite,
    Video,
    Wave,
    heading_name,
    make_video,
    outline,
    pattern,
)

SIZE = 64
seeds = st.integers(0, 2 * HELD_OUT)
varieties = st.sampled_from(VARIETIES)


def center(moving):
    """Center of mass of what moves, `[F, 2]` as (x, y) in pixels."""
    grid = torch.arange(moving.shape[-1]) + 0.5
    mass = moving.sum(dim=(1, 2, 3))
    weighed = [(moving * grid).sum(dim=(1, 2, 3)), (moving * grid[:, None]).sum(dim=(1, 2, 3))]
    return torch.stack(weighed, dim=1) / mass[:, None]


@settings(max_examples=15)
@given(seeds, varieties)
def test_a_video_is_a_function_of_its_seed(seed, variety):
    video, again = make_video(seed, SIZE, variety), make_video(seed, SIZE, variety)
    assert video == again
    shown = video.render(0, 6)
    assert shown.frames.shape == (6, 3, SIZE, SIZE) and shown.moving.shape == (6, 1, SIZE, SIZE)
    assert torch.equal(shown.frames, again.render(0, 6).frames)
    assert all(0 <= t.min() and t.max() <= 1 for t in (shown.frames, shown.moving))
    assert video != make_video(seed + 1, SIZE, variety)


@settings(max_examples=15)
@given(seeds, varieties, st.integers(0, 10**6))
def test_any_stretch_of_a_video_is_made_by_itself(seed, variety, start):
    video = make_video(seed, SIZE, variety)
    whole, part = video.render(start, start + 5), video.render(start + 3, start + 5)
    torch.testing.assert_close(part.frames, whole.frames[3:], atol=1e-6, rtol=0)
    torch.testing.assert_close(part.moving, whole.moving[3:], atol=1e-6, rtol=0)


@settings(max_examples=25)
@given(seeds, st.integers(0, 5000))
def test_what_moves_does_so_as_described(seed, frame):
    """The middle of a narrow video's ball goes along its heading at the described speed, unless it bounces."""
    video = make_video(seed, SIZE)
    [ball] = video.sprites
    footage = video.render(frame, frame + 2)
    times = torch.tensor([frame, frame + 1], dtype=torch.float64)
    pose = ball.path.pose(times)
    torch.testing.assert_close(center(footage.moving), torch.stack([pose.x, pose.y], 1).float(), atol=0.2, rtol=0)
    ahead, after = video.heading(frame), video.heading(frame + 1)
    if ahead == after:
        step = center(footage.moving).diff(dim=0)[0]
        expected = NARROW_SPEED * SIZE * torch.tensor([math.cos(ahead), math.sin(ahead)])
        torch.testing.assert_close(step, expected, atol=0.3, rtol=0)
    assert video.motion_bucket_id == 127


@settings(max_examples=25)
@given(seeds, st.integers(0, 5000))
def test_the_front_half_is_white_and_the_rear_half_of_the_named_color(seed, frame):
    video = make_video(seed, SIZE)
    [ball] = video.sprites
    footage, heading = video.render(frame, frame + 1), video.heading(frame)
    inside = footage.moving[0, 0] > 0.99
    x, y = center(footage.moving)[0]
    grid = torch.arange(SIZE) + 0.5
    ahead = math.cos(heading) * (grid - x) + math.sin(heading) * (grid[:, None] - y)
    front = footage.frames[0][:, inside & (ahead > 2)].mean(dim=1)
    rear = footage.frames[0][:, inside & (ahead < -2)].mean(dim=1)
    assert (front > 0.98).all()
    hue, saturation, _ = colorsys.rgb_to_hsv(*rear.tolist())
    off = abs(hue - COLORS[ball.color]) % 1
    assert min(off, 1 - off) < 0.02 and saturation > 0.95
    assert video.caption(frame) == f"a {ball.color} ball moving {heading_name(heading)}"


@settings(max_examples=20)
@given(seeds, varieties)
def test_nothing_ever_leaves_the_image(seed, variety):
    video = make_video(seed, SIZE, variety)
    times = torch.arange(0, 20000, 7, dtype=torch.float64)
    for sprite in video.sprites:
        pose = sprite.path.pose(times)
        for place in (pose.x, pose.y):
            assert place.min() >= sprite.radius_px - 1e-6 and place.max() <= SIZE - sprite.radius_px + 1e-6
        assert pose.heading.abs().max() <= math.pi + 1e-6


@given(st.floats(0.5, 5), st.floats(0, 6), st.sampled_from((-0.2, 0.15)))
def test_an_orbit_turns_evenly_and_looks_where_it_goes(radius, phase, turn):
    path = Orbit((30.0, 20.0), radius, phase, turn)
    step = 1e-4
    times = torch.arange(20, dtype=torch.float64)
    pose, later = path.pose(times), path.pose(times + step)
    moved = torch.stack([later.x - pose.x, later.y - pose.y]) / step
    ahead = torch.stack([pose.heading.cos(), pose.heading.sin()])
    torch.testing.assert_close(moved, radius * abs(turn) * ahead, atol=1e-3, rtol=0)
    assert torch.allclose(torch.remainder(pose.heading.diff() - turn + 3, 2 * math.pi), torch.tensor(3.0).double())


def test_a_bounce_reflects():
    path = Bounce((9.0, 5.0), (2.0, 0.0), low=1.0, high=10.0)
    pose = path.pose(torch.tensor([0.0, 1.0, 5.0, 9.0], dtype=torch.float64))
    assert pose.x.tolist() == [9, 9, 1, 9]
    assert [heading_name(h) for h in pose.heading.tolist()] == ["right", "left", "right", "right"]


def still(shape: str, rgb, x: float, y: float) -> Sprite:
    return Sprite(shape, "red", "plain", rgb, 12.0, Bounce((x, y), (1e-9, 0.0), 12.0, SIZE - 12.0))


def test_the_last_sprite_hides_the_others():
    plain = Background((0.2, 0.2, 0.2), ())
    back, front = still("ball", (1.0, 0.0, 0.0), 36, 32), still("ball", (0.0, 0.0, 1.0), 30, 32)
    shown = Video(0, SIZE, plain, (back, front)).render(0, 1)
    alone = Video(0, SIZE, plain, (front,)).render(0, 1)
    covered = alone.moving[0, 0] == 1
    assert covered.any() and torch.equal(shown.frames[0][:, covered], alone.frames[0][:, covered])
    assert shown.moving.sum() > alone.moving.sum()
    uncovered = (alone.moving[0, 0] == 0) & (shown.moving[0, 0] == 1)
    assert uncovered.any() and (shown.frames[0, 0][uncovered] > 0.99).all()


def test_a_pan_slides_the_background():
    wave = Wave((1, 2), 0.3, (0.1, 0.2, -0.1))
    shown = Background((0.4, 0.5, 0.6), (wave,), pan=(3.0, -2.0)).render(torch.tensor([0.0, 1.0]).double(), SIZE)
    torch.testing.assert_close(shown[1], shown[0].roll((2, -3), (1, 2)), atol=1e-5, rtol=0)


def test_shapes_have_their_outlines():
    """Each reaches `radius` or less ahead; the triangle's tip does, its base does not."""
    axis = torch.linspace(-20, 20, 401)
    for shape in SHAPES:
        inside = outline(shape, axis[None, :], axis[:, None], 12.0) < 0
        assert inside[200, 200] and not inside[0].any() and not inside[:, 0].any()
        assert torch.equal(inside, inside.flip(0))  # both sides alike
    tip = outline("triangle", torch.tensor([11.5, -11.5]), torch.zeros(2), 12.0)
    assert tip[0] < 0 < tip[1]


def test_wide_videos_have_all_there_is():
    videos = [make_video(seed, SIZE, "wide") for seed in range(120)]
    sprites = [sprite for video in videos for sprite in video.sprites]
    assert {sprite.shape for sprite in sprites} == set(SHAPES)
    assert {sprite.texture for sprite in sprites} == set(TEXTURES)
    assert {sprite.color for sprite in sprites} == set(COLORS)
    assert {type(sprite.path) for sprite in sprites} == {Bounce, Orbit}
    assert {len(video.sprites) for video in videos} == {1, 2}
    assert {video.background.pan == (0, 0) for video in videos} == {True, False}
    assert {heading_name(video.heading(0)) for video in videos} == set(HEADINGS)
    assert all(1 <= video.motion_bucket_id <= 255 for video in videos)
    assert " and a " in next(video for video in videos if len(video.sprites) == 2).caption(3)


def test_wrong_words_are_refused():
    with pytest.raises(ValueError, match="variety"):
        make_video(0, SIZE, "broad")
    with pytest.raises(ValueError, match="got 5 to 5"):
        make_video(0, SIZE).render(5, 5)
    with pytest.raises(ValueError, match="shape"):
        outline("star", torch.zeros(1), torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match="texture"):
        pattern("fur", torch.zeros(1), torch.zeros(1), 1.0)


def test_a_video_source_draws_videos_that_are_not_held_out():
    source = VideoSource(SIZE)
    clips = [source.draw(torch.Generator().manual_seed(s), 3, (5, 10), 2) for s in (0, 0, 1)]
    assert torch.equal(clips[0].footage.frames, clips[1].footage.frames)
    assert not torch.equal(clips[0].footage.frames, clips[2].footage.frames)
    assert clips[0].anchor.shape == (1, 3, SIZE, SIZE) and clips[0].footage.frames.shape == (3, 3, SIZE, SIZE)
    # The clip is frames 5..7 or 10..12 of a video whose frame 2 is the anchor.
    generator = torch.Generator().manual_seed(0)
    seed = int(torch.randint(HELD_OUT, (), generator=generator))
    video = make_video(seed, SIZE)
    assert torch.equal(video.render(2, 3).frames, clips[0].anchor)
    assert any(torch.equal(video.render(s, s + 3).frames, clips[0].footage.frames) for s in (5, 10))


def test_a_folder_source_draws_from_video_files(tmp_path):
    frames = make_video(3, SIZE).render(0, 14).frames
    wide = torch.cat([frames * 0, frames, frames * 0], dim=-1)  # the middle square is the video
    (tmp_path / "inner").mkdir()
    write_video([wide.movedim(1, -1)], tmp_path / "inner" / "a.mp4", fps=8)
    write_video([frames[:5].movedim(1, -1)], tmp_path / "short.mp4", fps=8)
    (tmp_path / "notes.txt").write_text("no video")
    source = FolderSource.open(tmp_path, 32, shortest=11)
    assert len(source.videos) == 1
    clip = source.draw(torch.Generator().manual_seed(0), 4, (4, 8, 100), 2)
    again = source.draw(torch.Generator().manual_seed(0), 4, (4, 8, 100), 2)
    assert torch.equal(clip.footage.frames, again.footage.frames)
    assert clip.footage.frames.shape == (4, 3, 32, 32) and clip.anchor.shape == (1, 3, 32, 32)
    small = torch.nn.functional.interpolate(frames, size=32, mode="bilinear", antialias=True)
    near = [(small[s : s + 4] - clip.footage.frames).abs().mean() for s in range(11)]
    start = int(torch.stack(near).argmin())
    assert near[start] < 0.03 and start >= 4
    # What the folder calls moving is where the ball is or was.
    ball = torch.nn.functional.interpolate(make_video(3, SIZE).render(start, start + 4).moving, size=32)
    assert (clip.footage.moving * ball).sum() > 0.4 * clip.footage.moving.sum() > 0
    with pytest.raises(SettingsError, match="holds 2 video files and none has 30 frames"):
        FolderSource.open(tmp_path, 32, shortest=30)


@pytest.mark.parametrize("variety, slowest, fastest", (("paced", 32, 254), ("slow", 13, 152), ("calm", 6, 38)))
def test_paced_slow_and_calm_videos_differ_in_speed_only_from_narrow_ones(variety, slowest, fastest):
    buckets = [make_video(seed, SIZE, variety).motion_bucket_id for seed in range(60)]
    assert slowest <= min(buckets) < slowest + 20 and fastest - 35 < max(buckets) <= fastest
    assert {make_video(seed, SIZE).motion_bucket_id for seed in range(20)} == {127}
    [sprite] = make_video(0, SIZE, variety).sprites
    assert (sprite.shape, sprite.texture) == ("ball", "plain")


def test_the_command_offers_every_variety():
    assert command.VARIETIES == VARIETIES

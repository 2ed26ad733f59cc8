"""Generated videos with cuts, fades and flashes at known frames, to compare cut detectors on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.metrics_videos import texture, view

SIZE = (90, 160)


@dataclass(frozen=True)
class CutVideo:
    """A video `[F, H, W, 3]`; `cuts` are the frames at which a new scene begins at once."""

    name: str
    frames: Tensor
    cuts: tuple[int, ...]


def scene(num_frames: int, seed: int, speed: float = 1.0, light: float = 0.0) -> Tensor:
    """A pan over an image of its own color; `[F, H, W, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    tint = torch.rand(3, 1, 1, generator=generator) * 0.9 - 0.45
    room = int(abs(speed) * num_frames) + 8
    image = (texture(SIZE[0] + 8, SIZE[1] + room, seed) + tint + light).clamp(0, 1)
    start = 2 if speed >= 0 else room - 4
    return torch.stack([view(image, start + speed * frame, 2, *SIZE) for frame in range(num_frames)]).movedim(1, -1)


def joined(name: str, *scenes: Tensor) -> CutVideo:
    lengths = [len(part) for part in scenes]
    return CutVideo(name, torch.cat(scenes), tuple(sum(lengths[:number]) for number in range(1, len(lengths))))


def dissolve(first: Tensor, second: Tensor, num_frames: int) -> Tensor:
    """`first` blends into `second` over `num_frames` frames that both share."""
    share = torch.linspace(0, 1, num_frames)[:, None, None, None]
    middle = first[-num_frames:] * (1 - share) + second[:num_frames] * share
    return torch.cat((first[:-num_frames], middle, second[num_frames:]))


def fade(frames: Tensor, start: int, num_frames: int, to: float, back: bool) -> Tensor:
    """From `start` on the video fades to gray level `to` over `num_frames` frames, and back over as many, if wanted."""
    frames = frames.clone()
    for step in range(num_frames * (2 if back else 1)):
        share = 1 - abs(1 - (step + 1) / num_frames)
        frames[start + step] = frames[start + step] * (1 - share) + to * share
    return frames


def flash(frames: Tensor, at: int, num_frames: int, light: float) -> Tensor:
    frames = frames.clone()
    frames[at : at + num_frames] = (frames[at : at + num_frames] + light).clamp(0, 1)
    return frames


def flicker(frames: Tensor, strength: float, seed: int) -> Tensor:
    light = torch.randn(len(frames), 1, 1, 1, generator=torch.Generator().manual_seed(seed)) * strength
    return (frames + light).clamp(0, 1)


def grain(frames: Tensor, strength: float, seed: int) -> Tensor:
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    return (frames + noise * strength).clamp(0, 1)


def generated_videos() -> list[CutVideo]:
    """The videos of the agreement test: hard cuts, dissolves, fades, flashes, and motion that is none of these."""
    long = scene(60, 1)
    return [
        CutVideo("pan, no cut", long, ()),
        CutVideo("still, no cut", long[:1].expand(60, -1, -1, -1), ()),
        CutVideo("fast pan", scene(60, 2, speed=6), ()),
        CutVideo("grain", grain(long, 0.03, 7), ()),
        CutVideo("flicker", flicker(long, 0.05, 8), ()),
        joined("one cut", scene(30, 1), scene(30, 2)),
        joined("one cut between still scenes", scene(30, 3, speed=0), scene(30, 4, speed=0)),
        joined("two cuts", scene(24, 5), scene(24, 6), scene(24, 7)),
        joined("five cuts", *[scene(20, seed) for seed in range(10, 16)]),
        joined("cut in fast motion", scene(30, 16, speed=5), scene(30, 17, speed=-5)),
        joined("scenes shorter than 15 frames", *[scene(9, seed) for seed in range(18, 26)]),
        joined("cut at frame 15", scene(15, 26), scene(30, 27)),
        joined("cut near the beginning", scene(5, 28), scene(40, 29)),
        joined("cut near the end", scene(40, 30), scene(2, 31)),
        joined("cut three frames before the end", scene(40, 32), scene(3, 33)),
        joined("cut with grain", grain(scene(30, 34), 0.04, 9), grain(scene(30, 35), 0.04, 10)),
        joined("cut with flicker", flicker(scene(30, 36), 0.03, 11), flicker(scene(30, 37), 0.03, 12)),
        joined("cut to black", scene(30, 38), torch.zeros(30, *SIZE, 3)),
        joined("cut between like scenes", long[:30], (long[30:] * 0.9 + 0.05)),
        joined("cut of light only", scene(30, 39), scene(30, 39, light=0.25)),
        CutVideo("dissolve of 24 frames", dissolve(scene(40, 40), scene(40, 41), 24), ()),
        CutVideo("dissolve of 4 frames", dissolve(scene(40, 42), scene(40, 43), 4), ()),
        CutVideo("fade to black and back", fade(long, 20, 10, 0.0, True), ()),
        CutVideo("fade to white", fade(long, 40, 20, 1.0, False), ()),
        CutVideo("fade over two frames", fade(long, 30, 2, 0.0, True), ()),
        CutVideo("flash of one frame", flash(long, 30, 1, 0.5), ()),
        CutVideo("flash of three frames", flash(long, 30, 3, 0.6), ()),
        CutVideo("two flashes", flash(flash(long, 20, 1, 0.5), 26, 1, 0.5), ()),
        CutVideo("flash at a cut", flash(joined("", scene(30, 44), scene(30, 45)).frames, 29, 2, 0.6), ()),
        CutVideo("dark video with a cut", joined("", scene(30, 46), scene(30, 47)).frames * 0.15, ()),
    ]

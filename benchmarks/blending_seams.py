"""Seams and blur of three ways to join windows that disagree, on a case whose truth is known.

    python -m benchmarks.blending_seams [--record]

Reference: hard cuts at a fixed place (seams show) and linear averaging (no seam, but blurred), on the same noise.

The video is a Gaussian process: fine detail that changes slowly, frames correlated over time. Each window's denoiser is
the exact one for that process, except that it expects some detail of its own, so neighboring windows disagree where
they overlap. All three run the same Euler steps on the same latent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming_core.windows.blending import write_window
from streaming_core.windows.handovers import SeededHandovers
from streaming_core.windows.plan import Windows, overlaps, plan_windows

Join = Callable[[Sequence[Tensor], Windows, int], Tensor]
FRAMES, WINDOW, OVERLAP, SIDE, STEPS = 90, 38, 12, 24, 30


@dataclass(frozen=True)
class Score:
    """`jump`: change from frame to frame at the worst place of each overlap, averaged over steps, then over overlaps,
    in units of the same inside windows. `sharpness`: energy of fine detail in overlaps of the finished video, in units
    of that inside windows.
    """

    jump: float
    sharpness: float


def joined(parts: Sequence[Tensor], windows: Windows, offsets: Sequence[int]) -> Tensor:
    """The windows of one step, each written from its handover on over the ones before it."""
    video = torch.empty(windows[-1].stop, *parts[0].shape[1:])
    for part, window, offset in zip(parts, windows, (0, *offsets), strict=True):
        write_window(video, part, range(window.start, window.stop), offset, dim=0)
    return video


def hard(parts: Sequence[Tensor], windows: Windows, step: int) -> Tensor:
    """One handover in the middle of each overlap, the same at every step."""
    return joined(parts, windows, [frames // 2 for frames in overlaps(windows)])


def randomized(seed: int) -> Join:
    handovers = SeededHandovers(seed)
    return lambda parts, windows, step: joined(parts, windows, handovers.offsets(windows, step))


def linear(parts: Sequence[Tensor], windows: Windows, step: int) -> Tensor:
    """Weights that rise and fall linearly over each overlap."""
    total, weights = torch.zeros(windows[-1].stop, *parts[0].shape[1:]), torch.zeros(windows[-1].stop, 1, 1)
    shared = [0, *overlaps(windows), 0]
    for number, (part, window) in enumerate(zip(parts, windows, strict=True)):
        ramp = torch.ones(len(window))
        before, after = shared[number], shared[number + 1]
        ramp[:before] = torch.linspace(0, 1, before + 2)[1:-1]
        ramp[len(window) - after :] = torch.linspace(1, 0, after + 2)[1:-1]
        total[window.start : window.stop] += part * ramp.view(-1, 1, 1)
        weights[window.start : window.stop] += ramp.view(-1, 1, 1)
    return total / weights


def run(join: Join, seed: int, disagreement: float = 0.7, spread: float = 0.7, correlation: float = 0.9) -> Score:
    """Sample one video; `spread` and `correlation` describe the process, `disagreement` the windows' own detail."""
    generator = torch.Generator("cpu").manual_seed(seed)
    windows = plan_windows(FRAMES, WINDOW, OVERLAP)
    detail = torch.randn(SIDE, SIDE, generator=generator)
    expected = [detail + disagreement * torch.randn(SIDE, SIDE, generator=generator) for _ in windows]
    place = torch.arange(WINDOW)
    covariance = spread**2 * correlation ** (place[:, None] - place[None, :]).abs().float()
    sigmas = torch.cat([torch.logspace(1, -1.5, STEPS), torch.zeros(1)])
    x = sigmas[0] * torch.randn(FRAMES, SIDE, SIDE, generator=generator)
    jumps = torch.zeros(FRAMES - 1)
    for step in range(STEPS):
        gain = covariance @ torch.linalg.inv(covariance + sigmas[step] ** 2 * torch.eye(WINDOW))
        parts = []
        for mean, window in zip(expected, windows, strict=True):
            rest = x[window.start : window.stop] - mean
            parts.append(mean + torch.einsum("ij,jhw->ihw", gain, rest))
        clean = join(parts, windows, step)
        jumps += (clean[1:] - clean[:-1]).pow(2).mean((1, 2)).sqrt() / STEPS
        x = clean + (sigmas[step + 1] / sigmas[step]) * (x - clean)
    shared = [range(after.start, before.stop) for before, after in zip(windows, windows[1:], strict=False)]
    overlap = torch.zeros(FRAMES, dtype=torch.bool)
    for frames in shared:
        overlap[frames.start : frames.stop] = True
    # Entry f of jumps lies between frames f and f + 1; a handover may lie on either end of an overlap.
    usual = jumps[~overlap[1:] & ~overlap[:-1]].mean()
    worst = torch.stack([jumps[frames.start - 1 : frames.stop].max() for frames in shared]).mean()
    energy = x.var((1, 2))
    return Score(float(worst / usual), float(energy[overlap].mean() / energy[~overlap].mean()))


def compare(seeds: Sequence[int] = range(8)) -> dict[str, Score]:
    """Mean scores over several videos."""
    ways = {"hard cut": lambda seed: hard, "linear average": lambda seed: linear, "randomized blending": randomized}
    scores = {}
    for name, way in ways.items():
        runs = [run(way(seed), seed) for seed in seeds]
        scores[name] = Score(
            sum(score.jump for score in runs) / len(runs), sum(score.sharpness for score in runs) / len(runs)
        )
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    args = parser.parse_args()
    from benchmarks import record

    rows = [[name, f"{score.jump:.2f}", f"{score.sharpness:.3f}"] for name, score in compare().items()]
    head = ["windows joined by", "jump at window borders, averaged over steps", "sharpness in overlaps"]
    body = (
        "## Seams between windows that disagree\n\n"
        f"{FRAMES} frames, windows of {WINDOW} with {OVERLAP} shared, {STEPS} Euler steps, mean of 8 videos. Both "
        "numbers are in units of the same inside windows: a jump of 1 is no seam, a sharpness of 1 no blur. The "
        "denoiser of each window is exact for a Gaussian video but expects fine detail of its own.\n\n"
        + record.table(head, rows)
    )
    print(body)
    if args.record:
        record.record("blending_seams", "python -m benchmarks.blending_seams --record", body)


if __name__ == "__main__":
    main()

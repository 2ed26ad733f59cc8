"""Speed of EMA-VFI: work shared between pairs, against the same network pair by pair without sharing or caches.

    python -m benchmarks.ema_vfi_speed [--pairs 20] [--size 448x256] [--threads 2] [--naive]

Random weights of the published size. All ways run in turn on every pair, so that a busy machine is as unfair to one as
to the other; what is printed is the median per pair. Small differences between pictures are part of the report.

ways:
    naive         features of both frames for every pair, masks and grids made anew at every use, plain memory layout
    shared        what Interpolate Stream does
    naive tta     as naive, both views in one batch of two, as the published code does
    shared tta    as shared, with fast test-time augmentation
    shared small  `ours_small` as shared
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from streaming_core import timeline
from streaming_core.frames import TensorFrames
from streaming_core.interpolation import InterpolatedFrames, InterpolationModel
from streaming_core.models.ema_vfi import attention, features, flow, refine, warp, windows
from streaming_core.models.ema_vfi.config import EmaVfiConfig, standard_config
from streaming_core.models.ema_vfi.interpolator import EmaVfiInterpolator, EmaVfiSettings
from streaming_core.models.ema_vfi.network import EmaVfi

OURS = standard_config(32, (2, 2, 2, 4, 4))
OURS_SMALL = standard_config(16, (2, 2, 2, 2, 2))


def random_network(config: EmaVfiConfig, seed: int = 0) -> EmaVfi:
    """Full-size random weights, scaled so that signals keep their size through the layers."""
    network = EmaVfi(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return network


def film(num_frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A textured picture that moves three pixels a frame, `[F, H, W, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, (width + 3 * num_frames) // 8, generator=generator)
    wide = nn.functional.interpolate(coarse, (height, width + 3 * num_frames), mode="bicubic")[0].clamp(0, 1)
    return torch.stack([wide[:, :, 3 * k : 3 * k + width].movedim(0, -1) for k in range(num_frames)])


@contextlib.contextmanager
def without_caches_and_layout() -> Iterator[None]:
    """The network as it would be without what is kept between calls, and in torch's plain memory layout."""
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (attention, "window_layout", windows.window_layout.__wrapped__),
            (warp, "_grid", warp._grid.__wrapped__),
            (features, "one_format", lambda x: x.contiguous()),
            (flow, "join", lambda *maps: torch.cat(maps, dim=1)),
            (refine, "join", lambda *maps: torch.cat(maps, dim=1)),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def naive(network: EmaVfi, tta: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Frames `[1, H, W, 3]` -> the one in between, everything computed for this pair alone."""

    def run(first: Tensor, second: Tensor) -> Tensor:
        pictures = [frame.movedim(-1, 1).flip(1).contiguous() for frame in (first, second)]
        if tta:
            pictures = [torch.cat((picture, picture.flip(2, 3))) for picture in pictures]
        with without_caches_and_layout(), torch.inference_mode():
            made = network(*pictures, torch.full((len(pictures[0]),), 0.5))
            if tta:
                made = (made[:1] + made[1:].flip(2, 3)) / 2
        return made.flip(1).movedim(1, -1)

    return run


class Shared:
    """`Interpolate Stream`, one pair per call."""

    def __init__(self, network: EmaVfi, frames: Tensor, tta: str):
        network = network.to(memory_format=torch.channels_last)
        model = InterpolationModel(EmaVfiInterpolator(network, EmaVfiSettings(tta=tta)))
        line = timeline.multiplied(len(frames), 8, 2)
        stream = InterpolatedFrames(TensorFrames(frames, 8), line, model)
        self.slices = stream.slices()

    def __call__(self, *_: Tensor) -> Tensor:
        return next(self.slices)[1:]


def parts(network: EmaVfi, first: Tensor, second: Tensor, plain: bool) -> dict[str, float]:
    """Seconds of each stage of one pair."""
    pictures = [frame.movedim(-1, 1).flip(1).contiguous() for frame in (first, second)]
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable):
        begin = time.perf_counter()
        result = call()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin
        return result

    with without_caches_and_layout() if plain else contextlib.nullcontext(), torch.inference_mode():
        both = [timed("features of a frame", lambda one=one: network.frame(one)) for one in pictures]
        if not plain:
            seconds["features of a frame"] /= 2  # the other frame's came with the pair before
        pair = timed("features of the pair", lambda: network.pair(*both))
        estimate = timed("flow heads", lambda: network.flows(pair, torch.tensor([0.5]))[-1])
        timed("refinement", lambda: network.picture(pair, estimate))
    return seconds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ema_vfi_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--size", default="448x256", help="width x height")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--naive", action="store_true", help="only the naive ways")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    width, height = (int(side) for side in args.size.split("x"))
    frames = film(args.pairs + 2, height, width)
    plain, laid_out = random_network(OURS), random_network(OURS)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "naive": naive(plain, tta=False),
        "naive tta": naive(plain, tta=True),
    }
    if not args.naive:
        ways["shared"] = Shared(laid_out, frames, "off")
        ways["shared tta"] = Shared(laid_out, frames, "fast")
        ways["shared small"] = Shared(random_network(OURS_SMALL), frames, "off")
    wall: dict[str, list[float]] = {name: [] for name in ways}
    used: dict[str, list[float]] = {name: [] for name in ways}
    stages: dict[str, list[dict[str, float]]] = {"naive": [], "shared": []}
    worst = {"shared": 0.0, "shared tta": 0.0}
    for index in range(args.pairs + 1):
        pair, made = (frames[index : index + 1], frames[index + 1 : index + 2]), {}
        for name, run in ways.items():
            begin, used_begin = time.perf_counter(), time.process_time()
            made[name] = run(*pair)
            if index:  # the first pair warms up
                wall[name].append(time.perf_counter() - begin)
                used[name].append(time.process_time() - used_begin)
        for name in worst.keys() & made.keys():
            worst[name] = max(worst[name], float((made[name] - made[name.replace("shared", "naive")]).abs().max()))
        if index:
            stages["naive"].append(parts(plain, *pair, plain=True))
            if not args.naive:
                stages["shared"].append(parts(laid_out, *pair, plain=False))

    print(f"{args.size}, {args.pairs} pairs, {args.threads} threads, torch {torch.__version__}, seconds per pair (median)")
    seconds = {name: statistics.median(values) for name, values in wall.items()}
    for name in ways:
        print(f"{name:14} {seconds[name]:7.3f} wall {statistics.median(used[name]):7.3f} of all threads")
    for name, rows in stages.items():
        if rows:
            median = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
            total = sum(median.values())
            print(name, *(f"| {part} {value:.3f} ({value / total:.0%})" for part, value in median.items()))
    if not args.naive:
        print(f"shared is {ratio(wall, 'naive', 'shared'):.2f} times as fast as naive (bar 1.08)")
        print(f"fast tta takes {ratio(wall, 'shared tta', 'shared'):.2f} times plain (bar 2.05); ", end="")
        print(f"in one batch {ratio(wall, 'naive tta', 'naive'):.2f}")
        print(f"ours_small is {ratio(wall, 'shared', 'shared small'):.2f} times as fast as ours (bar 3)")
        print(f"largest difference from naive: {worst['shared']:.1e} plain, {worst['shared tta']:.1e} tta (bar 1e-4)")


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the pairs of the ratio within a pair, which a busy spell does to both alike."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


if __name__ == "__main__":
    main()

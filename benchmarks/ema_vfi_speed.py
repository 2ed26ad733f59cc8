"""Speed of EMA-VFI: work shared between pairs, against the same network pair by pair without sharing or caches.

    python -m benchmarks.ema_vfi_speed [--pairs 20] [--size 448x256] [--threads 2] [--naive] [--record]

Random weights of the published size. All ways run in turn on every pair, so that a busy machine is as unfair to one as
to the other; what is printed is the median per pair.

ways:
    naive         features of both frames for every pair, masks and grids made again at every use, plain memory layout
    shared        what Interpolate Stream does
    naive tta     as naive, both views in one batch of two, as the published code does
    shared tta    as shared, with fast test-time augmentation
    shared small  `ours_small` as shared
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.record import record, table
from streaming_core.frames import TensorFrames
from streaming_core.interpolation import timeline
from streaming_core.interpolation.stream import InterpolatedFrames, InterpolationModel
from streaming_core.models.ema_vfi import attention, features, flow, refine, warp, windows
from streaming_core.models.ema_vfi.config import EmaVfiConfig, standard_config
from streaming_core.models.ema_vfi.interpolator import EmaVfiInterpolator, EmaVfiSettings
from streaming_core.models.ema_vfi.network import EmaVfi

OURS = standard_config(32, (2, 2, 2, 4, 4))
OURS_SMALL = standard_config(16, (2, 2, 2, 2, 2))
STAGE_PAIRS = 5
"""Pairs that are also timed stage by stage."""


def random_network(config: EmaVfiConfig, seed: int = 0) -> EmaVfi:
    """Full-size random weights, scaled so that signals keep their size through the layers."""
    network = EmaVfi(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return network


def video(num_frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A textured image that moves three pixels a frame, `[F, H, W, 3]`."""
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
        images = [frame.movedim(-1, 1).flip(1).contiguous() for frame in (first, second)]
        if tta:
            images = [torch.cat((image, image.flip(2, 3))) for image in images]
        with without_caches_and_layout(), torch.inference_mode():
            made = network(*images, torch.full((len(images[0]),), 0.5))
            if tta:
                made = (made[:1] + made[1:].flip(2, 3)) / 2
        return made.flip(1).movedim(1, -1)

    return run


class Shared:
    """`Interpolate Stream`, one pair per call."""

    def __init__(self, network: EmaVfi, frames: Tensor, tta: str):
        model = InterpolationModel(EmaVfiInterpolator(network, EmaVfiSettings(tta=tta)))
        line = timeline.multiplied(len(frames), 8, 2)
        stream = InterpolatedFrames(TensorFrames(frames, 8), line, model)
        self.slices = stream.slices()

    def __call__(self, *_: Tensor) -> Tensor:
        return next(self.slices)[1:]


def parts(network: EmaVfi, first: Tensor, second: Tensor, plain: bool) -> dict[str, float]:
    """Seconds of each stage of one pair."""
    images = [frame.movedim(-1, 1).flip(1).contiguous() for frame in (first, second)]
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable):
        begin = time.perf_counter()
        result = call()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin
        return result

    with without_caches_and_layout() if plain else contextlib.nullcontext(), torch.inference_mode():
        both = [timed("features of a frame", lambda one=one: network.frame(one)) for one in images]
        if not plain:
            seconds["features of a frame"] /= 2  # the other frame's came with the pair before
        pair = timed("features of the pair", lambda: network.pair(*both))
        estimate = timed("flow heads", lambda: network.flows(pair, torch.tensor([0.5]))[-1])
        timed("refinement", lambda: network.image(pair, estimate))
    return seconds


@dataclass
class Measured:
    """Seconds per pair of each way (wall clock, and processor time of all threads), stages, worst differences."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    used: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)

    def median(self, name: str) -> tuple[float, float]:
        return statistics.median(self.wall[name]), statistics.median(self.used[name])

    def ratio(self, slow: str, fast: str) -> tuple[float, float]:
        """Medians over the pairs of the ratio within a pair, which a busy spell does to both alike."""
        return tuple(
            statistics.median(a / b for a, b in zip(clock[slow], clock[fast], strict=True))
            for clock in (self.wall, self.used)
        )

    def shares(self, name: str) -> dict[str, tuple[float, float]]:
        """Median seconds and share of each stage."""
        median = {part: statistics.median(row[part] for row in self.stages[name]) for part in self.stages[name][0]}
        return {part: (value, value / sum(median.values())) for part, value in median.items()}


def measure(num_pairs: int, width: int, height: int, naive_only: bool) -> Measured:
    frames = video(num_pairs + 2, height, width)
    plain, laid_out = random_network(OURS), random_network(OURS).to(memory_format=torch.channels_last)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "naive": naive(plain, tta=False),
        "naive tta": naive(plain, tta=True),
    }
    if not naive_only:
        small = random_network(OURS_SMALL).to(memory_format=torch.channels_last)
        ways["shared"] = Shared(laid_out, frames, "off")
        ways["shared tta"] = Shared(laid_out, frames, "fast")
        ways["shared small"] = Shared(small, frames, "off")
    found = Measured({name: [] for name in ways}, {name: [] for name in ways})
    for index in range(num_pairs + 1):
        pair, made = (frames[index : index + 1], frames[index + 1 : index + 2]), {}
        for name, run in ways.items():
            begin, used_begin = time.perf_counter(), time.process_time()
            made[name] = run(*pair)
            if index:  # the first pair warms up
                found.wall[name].append(time.perf_counter() - begin)
                found.used[name].append(time.process_time() - used_begin)
        for name in {"shared", "shared tta"} & made.keys():
            difference = float((made[name] - made[name.replace("shared", "naive")]).abs().max())
            found.worst[name] = max(found.worst.get(name, 0.0), difference)
        if index in range(1, STAGE_PAIRS + 1):
            found.stages.setdefault("naive", []).append(parts(plain, *pair, plain=True))
            if not naive_only:
                found.stages.setdefault("shared", []).append(parts(laid_out, *pair, plain=False))
    return found


def report(found: Measured) -> str:
    """The measurements as markdown."""
    rows = [[name, *(f"{value:.2f}" for value in found.median(name))] for name in found.wall]
    text = table(["way", "seconds per pair", "processor seconds per pair"], rows)
    names = list(found.stages)
    shares = {name: found.shares(name) for name in names}
    stage_rows = [
        [part, *(f"{shares[name][part][0]:.2f} ({shares[name][part][1]:.0%})" for name in names)]
        for part in shares[names[0]]
    ]
    text += "\n\n" + table(["stage, seconds (share)", *names], stage_rows)
    if "shared" not in found.wall:
        return text
    ratios = [
        ("naive / shared", *found.ratio("naive", "shared"), "at least 1.08"),
        ("shared tta / shared", *found.ratio("shared tta", "shared"), "at most 2.05"),
        ("naive tta / naive", *found.ratio("naive tta", "naive"), "(2.45 in the reference)"),
        ("shared / shared small", *found.ratio("shared", "shared small"), "at least 3"),
    ]
    rows = [[name, f"{wall:.2f}", f"{used:.2f}", bar] for name, wall, used, bar in ratios]
    text += "\n\n" + table(["ratio, median over pairs", "by the clock", "by processor time", "bar"], rows)
    return text + (
        f"\n\nLargest difference between images: {found.worst['shared']:.1e} plain, {found.worst['shared tta']:.1e} "
        "with fast augmentation (bar 1e-4)."
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--size", default="448x256", help="width x height")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--naive", action="store_true", help="only the naive ways")
    parser.add_argument("--record", action="store_true", help="write the result to docs/benchmarks.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    width, height = (int(side) for side in args.size.split("x"))
    found = measure(args.pairs, width, height, args.naive)
    text = report(found)
    print(text)
    if args.record:
        command = f"python -m benchmarks.ema_vfi_speed --pairs {args.pairs} --record"
        head = (
            f"## EMA-VFI, work shared between pairs\n\n`ours` at full size with random weights, {args.size}, float32, "
            f"{args.pairs} pairs, {args.threads} threads, all ways in turn on every pair. naive: the same network pair "
            "by pair, nothing shared or kept, plain memory layout; its augmentation runs both views in one batch. "
            "shared: what Interpolate Stream does.\n\n"
        )
        record("ema_vfi_speed", command, head + text + LIMITS)
    return 0


LIMITS = """

Where time is saved: features of a frame are needed once instead of twice, masks and grids are kept, maps stay channels
last from the first convolution to the last, and the two views of fast augmentation run one after the other (in one
batch they fall out of the cache). What limits it now: refinement, whose convolutions of 62 G multiplications run near
the peak rate of the processor; and fresh memory: with `MALLOC_MMAP_THRESHOLD_=4000000000
MALLOC_TRIM_THRESHOLD_=8000000000` in the environment of a Linux process the C library keeps large blocks, which took a
further 13 to 17 % off the processor time (measured once, one thread).

No GPU was available: float16 with channels-last is implemented, and its results were compared on the CPU; its speed,
memory and error on a GPU are **not measured**."""


if __name__ == "__main__":
    sys.exit(main())

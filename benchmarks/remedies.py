"""Whether Perturb Tail and Previous Chunk Guidance keep a long video nearer to the true one, on the demo model.

    nice -n 5 python -m benchmarks.remedies [--record] [--videos 8] [--minutes 10]

Reference: the same file, videos and seeds without either. Each held-out video is continued for some chunks from its
true first chunk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from benchmarks.demo_models import FIRST_SEED, MODEL, NEW_FRAMES, SIZE, VIDEOS, background, hue_errors, mean_hue
from benchmarks.record import record, table
from streaming_core.loop.remedies import Perturbation, PreviousGuidance
from training import showcase
from training.showcase import CHUNK_FRAMES, Parts
from training.videos import make_video

CHUNKS, STEPS = 5, 6
SETTINGS: dict[str, tuple[Perturbation, PreviousGuidance]] = {
    "neither": (Perturbation(), PreviousGuidance()),
    "level 0.03": (Perturbation(0.03), PreviousGuidance()),
    "weight 0.1": (Perturbation(), PreviousGuidance(0.1)),
}


def judged(parts: Parts, seed: int, settings: tuple[Perturbation, PreviousGuidance]) -> dict[str, float]:
    """The numbers of one video."""
    noise, guidance = settings
    sampler = parts.sampler.with_perturbed_tail(noise).with_previous_guidance(guidance)
    length = CHUNK_FRAMES + CHUNKS * NEW_FRAMES
    truth = make_video(seed, SIZE, VIDEOS).render(0, length).frames
    first = truth[:CHUNK_FRAMES]
    frames = showcase.with_cam(replace(parts, sampler=sampler), first, length, seed % 2**32)
    reference = mean_hue(first)
    hue, lost = hue_errors(frames[CHUNK_FRAMES:], 0.0 if reference is None else reference)
    return {
        "error": float(((frames - truth)[CHUNK_FRAMES:] ** 2).mean()),
        "background": float((background(frames[-NEW_FRAMES:]) - background(first)).norm()),
        "hue": hue,
        "lost": lost,
        "jump": jump(frames),
    }


def jump(frames: Tensor) -> float:
    """Mean change between frames where chunks meet, to that between the other frames."""
    changes = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))[CHUNK_FRAMES - 1 :]
    meets = torch.zeros(len(changes), dtype=torch.bool)
    meets[::NEW_FRAMES] = True
    return float(changes[meets].mean() / changes[~meets].mean())


def rows(found: dict[str, list[dict[str, float]]]) -> Iterator[list[str]]:
    plain = found["neither"]
    for name, numbers in found.items():

        def column(of: str, form: str, numbers: list[dict[str, float]] = numbers) -> str:
            values = [each[of] for each in numbers]
            shown = format(mean(values), form)
            if numbers is plain or len(values) < 2:
                return shown
            # Pairs of videos with the same noise: what matters is the spread of the difference.
            differences = [value - other[of] for value, other in zip(values, plain, strict=True)]
            return f"{shown} ({mean(differences):+{form}} ± {stdev(differences) / len(differences) ** 0.5:{form}})"

        yield [
            name,
            column("error", ".4f"),
            column("background", ".4f"),
            column("hue", ".1f"),
            column("lost", ".2f"),
            column("jump", ".3f"),
        ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--videos", type=int, default=8, help="held-out videos (default 8)")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no video after this time (default 10)")
    parser.add_argument("--model", type=Path, default=MODEL, help="a file that was trained here")
    args = parser.parse_args(argv)
    parts, began = showcase.open_parts(args.model, STEPS), time.monotonic()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for number in range(args.videos):
        taken = (time.monotonic() - began) / 60
        if number and taken * (number + 1) / number > args.minutes:
            break
        for name, settings in SETTINGS.items():
            with torch.inference_mode():
                found[name].append(judged(parts, FIRST_SEED + number, settings))
            print(number, name, {key: round(value, 4) for key, value in found[name][-1].items()}, flush=True)
    count = len(found["neither"])
    head = ["setting", "squared error", "background", "hue, degrees", "frames without sprite", "jump at joins"]
    body = table(head, list(rows(found)))
    print(body)
    if args.record:
        record(
            "remedies",
            "python -m benchmarks.remedies --record",
            f"## Perturb Tail and Previous Chunk Guidance\n\nThe demo StreamingSVD continues {count} held-out videos "
            f"for {CHUNKS} chunks of {STEPS} steps from their true first chunk. Squared error: all new frames against "
            f"the true video. Background: its color in chunk {CHUNKS} against the first chunk (of 1). Hue: of the "
            "sprite against the first chunk. Jump: change between frames where chunks meet, to that between the "
            f"others. In brackets the mean difference to neither ± its standard error.\n\n{body}",
        )


if __name__ == "__main__":
    main()

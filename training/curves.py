"""Draws the loss of every stage of a training folder: python -m training.curves --out DIR --image FILE.png"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .loop import read_log

WIDTH, HEIGHT, MARGIN = 480, 260, 46
SMOOTHED = 40
"""Steps that a point of the curve averages."""
INK, PALE, GRID = "#1f4e9e", "#bcd0ee", "#dddddd"


def smoothed(values: list[float], over: int) -> list[float]:
    """Mean of the last `over` values at each place, of fewer at the beginning."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i] - sums[max(0, i - over)]) / min(i, over) for i in range(1, len(sums))]


def last_measured(log: list[dict]) -> str:
    """What the stage's own measures ended with."""
    found = [entry["measured"] for entry in log if "measured" in entry]
    return ", ".join(f"{name} {value:.3g}" for name, value in list(found[-1].items())[:3]) if found else ""


def draw_curve(log: list[dict], title: str) -> Image.Image:
    """Loss over steps on a logarithmic scale: pale every step, dark the mean of the last ones."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    entries = [entry for entry in log if "loss" in entry]
    losses = [entry["loss"] for entry in entries]
    low, high = math.log10(min(losses)), math.log10(max(losses))
    last = entries[-1]["step"]

    def place(step: float, value: float) -> tuple[float, float]:
        across = MARGIN + (WIDTH - MARGIN - 12) * step / last
        return across, 30 + (HEIGHT - 30 - MARGIN) * (high - math.log10(value)) / max(1e-9, high - low)

    for power in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if low <= math.log10(value) <= high:
                y = place(0, value)[1]
                draw.line((MARGIN, y, WIDTH - 12, y), fill=GRID)
                draw.text((MARGIN - 6, y), f"{value:g}", fill="black", font=font, anchor="rm")
    for share in (0, 0.5, 1):
        draw.text((place(last * share, 10**low)[0], HEIGHT - MARGIN + 8), f"{last * share:.0f}", "black", font, "ma")
    for values, color, width in ((losses, PALE, 1), (smoothed(losses, SMOOTHED), INK, 2)):
        points = [place(entry["step"], value) for entry, value in zip(entries, values, strict=True)]
        draw.line(points, fill=color, width=width)
    minutes = entries[-1]["seconds"] / 60
    draw.text((MARGIN, 8), f"{title}: loss over steps, {minutes:.0f} minutes", "black", ImageFont.load_default(14))
    draw.text((WIDTH / 2, HEIGHT - 18), last_measured(log), "black", font, "ma")
    return image


def draw_curves(folder: Path) -> Image.Image:
    """All stages that have a log in a folder, two in a row."""
    logs = sorted(folder.glob("*.jsonl"), key=lambda path: path.stem)
    images = [draw_curve(read_log(path), path.stem) for path in logs]
    sheet = Image.new("RGB", (min(2, len(images)) * WIDTH, -(-len(images) // 2) * HEIGHT), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % 2 * WIDTH, number // 2 * HEIGHT))
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.curves", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder that was trained in")
    parser.add_argument("--image", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)
    draw_curves(args.out).save(args.image, optimize=True)


if __name__ == "__main__":
    main()

"""The report as an image: curves over time above each other, with chunk boundaries and cuts marked in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from .measure import Measures
from .report import at_frames, color_distance, headlines, video_line

WIDTH_PX = 1024
LEFT_PX, RIGHT_PX = 64, 20
PANEL_PX, GAP_PX, AXIS_PX = 104, 38, 60
LINE_PX, TITLE_PX = 22, 26
SHARPNESS = 2  # everything is drawn twice as large and shrunk, which smooths curves and spaces letters well

PAPER, BAND, INK, GRAY, RULE = "#ffffff", "#f3f5f8", "#1c2430", "#6b7685", "#d9dee6"
BOUNDARY, CUT = "#9aa7b8", "#d62f3a"
BLUE, GREEN, ORANGE, PURPLE, TEAL, BROWN = "#2463b0", "#2c8a4b", "#d07a12", "#7a4bb5", "#0f8c8c", "#8a5a33"


@dataclass(frozen=True)
class Panel:
    """One curve. `dots` are (frame, value) to set apart; `level` is a value to rule a line at.

    With `cut_off` the few highest values, such as the flow across a scene cut, may leave the panel at its top.
    """

    title: str
    values: Sequence[float | None]
    color: str
    lowest: float | None = None
    highest: float | None = None
    least_span: float = 0.0
    logarithmic: bool = False
    cut_off: bool = False
    level: float | None = None
    dots: Sequence[tuple[int, float]] = field(default_factory=tuple)


def panels(measures: Measures) -> list[Panel]:
    """The curves of a report, in the order in which they are shown."""
    shown = []
    if measures.mawe is not None and not measures.mawe.is_still:
        ratios = at_frames(measures.mawe.ratios)
        shown.append(Panel("MAWE of each pair (low is good)", ratios, BROWN, lowest=0, least_span=1, cut_off=True))
    joins = [(join.frame, join.score) for join in measures.seams.joins]
    title = "Jump relative to its neighbors (1x: as elsewhere; dots: chunk boundaries)"
    jumps = at_frames(measures.seams.ratios)
    shown.append(Panel(title, jumps, BLUE, lowest=0.5, least_span=7.5, logarithmic=True, level=1, dots=joins))
    motion = at_frames(measures.stagnation.motion)
    title = "Motion, % of the diagonal per frame"
    shown.append(Panel(title, motion, GREEN, lowest=0, least_span=0.1, cut_off=True))
    title = "Color distance from the first chunk, delta E"
    shown.append(Panel(title, color_distance(measures), ORANGE, lowest=0, least_span=4))
    if measures.anchor is not None:
        title = f"Similarity to the anchor, cosine ({measures.clip_name})"
        shown.append(Panel(title, measures.anchor.values, PURPLE, highest=1, least_span=0.1))
    if measures.text is not None:
        title = f"Similarity to the text, cosine ({measures.clip_name})"
        shown.append(Panel(title, measures.text.values, TEAL, least_span=0.05))
    return shown


def frame_x(frame: float, num_frames: int, width: int = WIDTH_PX) -> float:
    """Where a frame stands in the image, in pixels from the left."""
    return LEFT_PX + (width - LEFT_PX - RIGHT_PX) * frame / max(num_frames - 1, 1)


def nice_step(span: float, steps: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that divides `span` into at most `steps` parts."""
    power = 10 ** math.floor(math.log10(span / steps))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor * steps >= span * (1 - 1e-9))


@dataclass(frozen=True)
class Scale:
    """From values to heights between 0 (bottom) and 1 (top)."""

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def height(self, value: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, max(value, self.low)))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def scale_of(panel: Panel) -> Scale:
    known = [value for value in panel.values if value is not None] or [0.0]
    low = min(known) if panel.lowest is None else panel.lowest
    high = max(known) if panel.highest is None else panel.highest
    if panel.logarithmic:
        high = max(high, low + panel.least_span) * 1.15
        bases = (1, 2, 5) if high < 80 * low else (1,)
        ticks = sorted(base * 10.0**power for power in range(-2, 7) for base in bases)
        return Scale(low, high, True, tuple(tick for tick in ticks if low <= tick <= high))
    if panel.cut_off:
        high = min(high, 1.5 * sorted(known)[int(0.95 * (len(known) - 1))])
    span = max(high - low, panel.least_span)
    if panel.lowest is None:
        low = high - span if panel.highest is not None else (high + low - span) / 2
    step = nice_step(span, 3)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return Scale(first * step, last * step, False, tuple(step * number for number in range(first, last + 1)))


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow: no file of the system is needed."""
    return ImageFont.load_default(size)


def draw_report(measures: Measures, width: int = WIDTH_PX) -> Image.Image:
    """The report of a video, `width` pixels wide and as high as its curves need; RGB."""
    lines, shown = headlines(measures), panels(measures)
    left_out = [f"not measured: {name} - {reason}" for name, reason in measures.left_out.items()]
    top = 20 + TITLE_PX + 24 + LINE_PX * len(lines) + 18 * len(left_out) + 30
    tops = [top + 10 + number * (PANEL_PX + GAP_PX) for number in range(len(shown))]
    height = tops[-1] + PANEL_PX + AXIS_PX
    image = Image.new("RGB", (width * SHARPNESS, height * SHARPNESS), PAPER)
    pen = Pen(ImageDraw.Draw(image), measures.num_frames, width)
    write_head(pen, measures, lines, left_out)
    for panel, y in zip(shown, tops, strict=True):
        draw_background(pen, measures, y)
        draw_panel(pen, panel, scale_of(panel), y)
        draw_cuts(pen, measures, y)
    write_axis(pen, measures, tops[-1] + PANEL_PX)
    write_legend(pen, measures, top - 22)
    return image.resize((width, height), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Pen:
    """Draws on the enlarged image in coordinates of the final one."""

    draw: ImageDraw.ImageDraw
    num_frames: int
    width: int

    def x(self, frame: float) -> float:
        return frame_x(frame, self.num_frames, self.width)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1) -> None:
        self.draw.line([(x * SHARPNESS, y * SHARPNESS) for x, y in points], color, round(width * SHARPNESS), "curve")

    def box(self, x0: float, y0: float, x1: float, y1: float, color: str) -> None:
        self.draw.rectangle([round(v * SHARPNESS) for v in (x0, y0, x1, y1)], fill=color)

    def dot(self, x: float, y: float, radius: float, color: str) -> None:
        corners = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse([v * SHARPNESS for v in corners], fill=color, outline=PAPER, width=SHARPNESS)

    def text(self, x: float, y: float, text: str, color: str, size: int, anchor: str = "la") -> float:
        """Writes, and returns the width in pixels."""
        face = font(size * SHARPNESS)
        self.draw.text((x * SHARPNESS, y * SHARPNESS), text, color, face, anchor=anchor)
        return self.draw.textlength(text, face) / SHARPNESS


def draw_background(pen: Pen, measures: Measures, y: float) -> None:
    """Chunks as bands, every second one shaded, and a line where two of them meet."""
    chunks = measures.layout.chunks if measures.layout.known else ()
    for number, chunk in enumerate(chunks):
        if number % 2 == 0:
            pen.box(pen.x(chunk.start), y, pen.x(min(chunk.stop, measures.num_frames - 1)), y + PANEL_PX, BAND)
    for frame in measures.layout.boundaries:
        # Half a final pixel each way: shrinking then leaves one clear column.
        x = round(pen.x(frame))
        pen.box(x, y, x + 0.5, y + PANEL_PX, BOUNDARY)


def draw_panel(pen: Pen, panel: Panel, scale: Scale, y: float) -> None:
    def place(frame: int, value: float) -> tuple[float, float]:
        return pen.x(frame), y + PANEL_PX * (1 - scale.height(value))

    pen.text(LEFT_PX, y - 21, panel.title, panel.color, 14)
    right = pen.width - RIGHT_PX
    for tick in scale.ticks:
        tick_y = y + PANEL_PX * (1 - scale.height(tick))
        pen.line([(LEFT_PX, tick_y), (right, tick_y)], GRAY if tick == panel.level else RULE)
        pen.text(LEFT_PX - 8, tick_y, f"{tick:g}x" if panel.logarithmic else f"{tick:g}", GRAY, 12, anchor="rm")
    run: list[tuple[float, float]] = []
    for frame, value in enumerate([*panel.values, None]):
        if value is not None:
            run.append(place(frame, value))
        elif run:
            pen.line(run if len(run) > 1 else [run[0], (run[0][0] + 1, run[0][1])], panel.color, 2)
            run = []
    radius = 3.5 if len(panel.dots) <= 60 else 2
    for frame, value in panel.dots:
        pen.dot(*place(frame, value), radius, INK)


def draw_cuts(pen: Pen, measures: Measures, y: float) -> None:
    for frame in measures.cuts.frames:
        x = round(pen.x(frame))
        pen.box(x, y, x + 0.5, y + PANEL_PX, CUT)
        pen.draw.polygon(
            [(v * SHARPNESS, w * SHARPNESS) for v, w in ((x - 5, y - 7), (x + 5.5, y - 7), (x + 0.25, y))], CUT
        )


def write_head(pen: Pen, measures: Measures, lines: Sequence[tuple[str, str, str]], left_out: Sequence[str]) -> None:
    pen.text(20, 16, "Video report", INK, TITLE_PX)
    pen.text(20, 22 + TITLE_PX, f"{video_line(measures)}; motion from {measures.flow_name}", GRAY, 14)
    y = 50 + TITLE_PX
    for name, value, remark in lines:
        pen.text(20, y, name, INK, 16)
        pen.text(250, y, value, INK, 16, anchor="ra")
        pen.text(268, y + 1, remark, GRAY, 14)
        y += LINE_PX
    for line in left_out:
        pen.text(20, y + 2, line, GRAY, 13)
        y += 18


def write_axis(pen: Pen, measures: Measures, y: float) -> None:
    """Frame numbers, below them seconds, and below those the chunks."""
    last = measures.num_frames - 1
    step = max(1, round(nice_step(last, 8)))
    for frame in range(0, last + 1, step):
        x = pen.x(frame)
        pen.line([(x, y), (x, y + 4)], GRAY)
        pen.text(x, y + 7, str(frame), INK, 12, anchor="ma")
        pen.text(x, y + 22, f"{frame / measures.fps:.1f} s", GRAY, 11, anchor="ma")
    pen.text(LEFT_PX - 22, y + 7, "frame", GRAY, 12, anchor="ra")
    chunks = measures.layout.chunks if measures.layout.known else ()
    if not chunks:
        return
    pen.text(LEFT_PX - 22, y + 37, "chunk", GRAY, 12, anchor="ra")
    free: float = LEFT_PX
    for number, chunk in enumerate(chunks):
        x = (pen.x(chunk.start) + pen.x(min(chunk.stop, last))) / 2
        if x - 10 >= free:
            pen.text(x, y + 37, str(number), GRAY, 12, anchor="ma")
            free = x + 14


def write_legend(pen: Pen, measures: Measures, y: float) -> None:
    """What the vertical lines are, at the right edge."""
    entries = [(CUT, "scene cut")] if measures.cuts.count else []
    if measures.layout.boundaries:
        entries.append((BOUNDARY, "chunk boundary"))
    x: float = pen.width - RIGHT_PX
    for color, text in entries:
        x -= pen.text(x, y, text, GRAY, 13, anchor="ra") + 8
        pen.box(x - 2, y, x, y + 13, color)
        x -= 20

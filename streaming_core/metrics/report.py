"""The report of a video as text, JSON and CSV; the image is in `chart.py`.

Values of a pair of frames stand at the later of the two.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from .measure import Measures

VERSION = 1
Value = float | int | bool | str | None


def at_frames(pairs: Sequence[float | None]) -> list[float | None]:
    """Values of pairs as values of frames: that of the pair which a frame ends; None for the first frame."""
    return [None, *pairs]


def color_distance(measures: Measures) -> list[float]:
    """Distance (delta E) of each frame's mean color from that of the first chunk."""
    first = measures.color.chunk_means[0]
    return [
        sum((value - start) ** 2 for value, start in zip(mean, first, strict=True)) ** 0.5
        for mean in measures.color_means
    ]


def curves(measures: Measures) -> dict[str, list[float | None]]:
    """Every curve with one value per frame, by its column name."""
    lightness, red_green, blue_yellow = (list(axis) for axis in zip(*measures.color_means, strict=True))
    columns: dict[str, list[float | None]] = {
        "lab_l": lightness,
        "lab_a": red_green,
        "lab_b": blue_yellow,
        "color_distance": list(color_distance(measures)),
        "motion_percent": at_frames(measures.stagnation.motion),
        "unexplained_gray_levels": at_frames(measures.differences),
        "jump_ratio": at_frames(measures.seams.ratios),
    }
    if measures.mawe is not None:
        columns["warp_error"] = at_frames(measures.mawe.errors)
        columns["flow_px"] = at_frames(measures.mawe.lengths)
        columns["mawe"] = at_frames(measures.mawe.ratios)
    for name, found in (("anchor", measures.anchor), ("text", measures.text)):
        if found is not None:
            columns[f"{name}_similarity"] = list(found.values)
    return columns


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def chunk_rows(measures: Measures) -> list[dict[str, float | None]]:
    """One row of numbers per chunk."""
    seams = {join.frame: join.score for join in measures.seams.joins}
    rows = []
    for number, chunk in enumerate(measures.layout.chunks):
        row: dict[str, float | None] = {
            "chunk": number,
            "start": chunk.start,
            "stop": chunk.stop,
            "color_drift": measures.color.chunk_drift[number],
            "spread_ratio": measures.color.chunk_spread_ratio[number],
            "motion_percent": measures.stagnation.chunk_motion[number],
            "cuts": sum(frame in chunk for frame in measures.cuts.frames),
            "seam": seams.get(chunk.start),
        }
        if measures.mawe is not None:
            row["mawe"] = mean_of(measures.mawe.ratios[max(chunk.start - 1, 0) : chunk.stop - 1])
        for name, found in (("anchor", measures.anchor), ("text", measures.text)):
            if found is not None:
                row[f"{name}_similarity"] = found.chunk_means[number]
        rows.append(row)
    return rows


def summary(measures: Measures) -> dict[str, Any]:
    """Everything measured, as plain lists, dicts and numbers; what could not be measured is None."""
    mawe, color, seams, rest = measures.mawe, measures.color, measures.seams, measures.stagnation
    return {
        "format": "streaming_core.metrics",
        "version": VERSION,
        "video": {
            "frames": measures.num_frames,
            "width": measures.width,
            "height": measures.height,
            "fps": measures.fps,
            "seconds": measures.num_frames / measures.fps,
        },
        "flow": measures.flow_name,
        "mawe": mawe
        and {
            "value": mawe.value,
            "official": mawe.official,
            "still": mawe.is_still,
            "pairs": mawe.pairs,
            "still_pairs": mawe.still_pairs,
        },
        "cuts": {
            "count": measures.cuts.count,
            "frames": list(measures.cuts.frames),
            "detector": measures.cuts.detector,
        },
        "color_drift": {
            "largest": color.largest,
            "last": color.last,
            "trend_lab": list(color.trend),
            "trend": color.trend_size,
        },
        "seams": {
            "largest": seams.largest,
            "typical": seams.typical,
            "joins": [
                {key: getattr(join, key) for key in ("frame", "score", "detail", "tone", "motion")}
                for join in seams.joins
            ],
        },
        "stagnation": {
            "still": rest.is_still,
            "kept": rest.kept,
            "stagnant_from": rest.stagnant_from,
            "still_pairs": rest.still_pairs,
            "longest_still": rest.longest_still,
            "pairs": measures.num_frames - 1,
        },
        "anchor_similarity": score(measures.anchor, measures.clip_name),
        "text_score": score(measures.text, measures.clip_name),
        "left_out": dict(measures.left_out),
        "chunks_known": measures.layout.known,
        "boundaries": list(measures.layout.boundaries),
        "chunks": chunk_rows(measures),
        "curves": curves(measures),
    }


def score(found, model: str | None) -> dict[str, Value] | None:
    return found and {"mean": found.mean, "worst": found.worst, "worst_frame": found.worst_frame, "model": model}


def as_json(measures: Measures) -> str:
    """The summary as strict JSON."""
    return json.dumps(summary(measures), indent=1, allow_nan=False)


def as_csv(measures: Measures) -> str:
    """One line per frame: its number, chunk, whether a chunk or a scene begins there, and every curve."""
    columns = curves(measures)
    starts, cuts = set(measures.layout.boundaries), set(measures.cuts.frames)
    chunk_of = [number for number, chunk in enumerate(measures.layout.chunks) for _ in chunk]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "chunk", "starts_chunk", "cut", *columns])
    for frame in range(measures.num_frames):
        values = [column[frame] for column in columns.values()]
        numbers = ["" if value is None else f"{value:.6g}" for value in values]
        writer.writerow([frame, chunk_of[frame], int(frame in starts), int(frame in cuts), *numbers])
    return text.getvalue()


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def headlines(measures: Measures) -> list[tuple[str, str, str]]:
    """(name, value, remark) of every measure, for people."""
    mawe, color, seams, rest = measures.mawe, measures.color, measures.seams, measures.stagnation
    lines: list[tuple[str, str, str]] = []
    if mawe is not None:
        value = "still" if mawe.is_still else number(mawe.value)
        remark = f"low is good; {mawe.pairs} pairs, {mawe.still_pairs} still and left out"
        if mawe.still_pairs and not mawe.is_still:
            remark += f"; with them {number(mawe.official)}" if mawe.official is not None else "; with them infinite"
        lines.append(("MAWE", value, remark))
    cuts = ", ".join(map(str, measures.cuts.frames[:8])) + (" ..." if measures.cuts.count > 8 else "")
    lines.append(("Scene cuts", str(measures.cuts.count), f"{f'at {cuts}; ' if cuts else ''}{measures.cuts.detector}"))
    trend = ", ".join(f"{axis} {change:+.1f}" for axis, change in zip("Lab", color.trend, strict=True))
    lines.append(("Color drift", f"{number(color.largest)} dE", f"last {number(color.last)}; trend {trend}"))
    if seams.joins:
        worst = max(seams.joins, key=lambda join: join.score)
        cut = " (a scene cut)" if worst.frame in measures.cuts.frames else ""
        remark = (
            f"largest, at frame {worst.frame}{cut}; typical {number(seams.typical, 1)}x; 1x is the same as elsewhere"
        )
        lines.append(("Seams", f"{number(seams.largest, 1)}x", remark))
    first = f"{number(rest.chunk_motion[0])} % of the diagonal per frame at the start"
    if rest.is_still:
        lines.append(("Motion kept", "still", "no frame differs from the one before"))
    else:
        kept = "-" if rest.kept is None else f"{100 * rest.kept:.0f} %"
        at_rest = "" if rest.stagnant_from is None else f"; at rest from frame {rest.stagnant_from}"
        remark = f"{first}; {rest.still_pairs} of {measures.num_frames - 1} pairs still{at_rest}"
        lines.append(("Motion kept", kept, remark))
    for name, found in (("Anchor similarity", measures.anchor), ("Text score", measures.text)):
        if found is not None:
            remark = f"mean; lowest {number(found.worst, 3)} at frame {found.worst_frame}; {measures.clip_name}"
            lines.append((name, number(found.mean, 3), remark))
    return lines


def video_line(measures: Measures) -> str:
    seconds = measures.num_frames / measures.fps
    chunks = f"{len(measures.layout.chunks)} {'chunks' if measures.layout.known else 'windows, chunks unknown'}"
    size = f"{measures.width}x{measures.height}"
    return f"{measures.num_frames} frames, {size}, {measures.fps:g} fps, {seconds:.1f} s, {chunks}"


TABLE = [
    ("chunk", "chunk", 0),
    ("color_drift", "drift dE", 2),
    ("spread_ratio", "spread", 2),
    ("motion_percent", "motion %", 3),
    ("cuts", "cuts", 0),
    ("seam", "seam x", 1),
    ("mawe", "MAWE", 2),
    ("anchor_similarity", "anchor", 3),
    ("text_similarity", "text", 3),
]


def as_text(measures: Measures) -> str:
    """The report as a table for people."""
    lines = [f"Video report: {video_line(measures)}", f"Motion from: {measures.flow_name}", ""]
    lines += [f"{name:<18} {value:>10}   {remark}" for name, value, remark in headlines(measures)]
    lines += [f"not measured: {name} ({reason})" for name, reason in measures.left_out.items()]
    rows = chunk_rows(measures)
    shown = [(key, title, digits) for key, title, digits in TABLE if key in rows[0]]
    cells = [["frames", *(title for _, title, _ in shown)]]
    for chunk, row in zip(measures.layout.chunks, rows, strict=True):
        frames = f"{chunk.start}-{chunk.stop - 1}"
        cells.append([frames, *(number(row[key], digits) for key, _, digits in shown)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["", *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)]
    return "\n".join(lines) + "\n"

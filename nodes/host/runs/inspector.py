"""What Run Inspector says and shows of run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ....streaming_core.errors import RunDamagedError, SettingsError, StreamingError
from ....streaming_core.frames import FrameStream
from ....streaming_core.runs.care import (
    delete_older,
    delete_run,
    is_intact,
    recover,
    run_bytes,
    set_aside_damaged,
    use_take,
)
from ....streaming_core.runs.changes import chunks_text, take_text
from ....streaming_core.runs.folder import RunFolder, list_runs
from ....streaming_core.runs.lock import LOCK, holder
from ....streaming_core.runs.manifest import MANIFEST, ChunkRecord, RunManifest
from ..progress import check_cancel
from .paths import runs_root

ACTIONS = ("look", "choose take", "set damaged aside", "recover manifest", "delete older takes", "delete run")
TILE_PX = 160
COLUMNS = 6
LINE_PX = 14
MAX_TILES = 120
Tile = tuple[Tensor | None, Sequence[str]]
"""An image `[H, W, 3]` and the lines of text below it."""


def act(action: str, run_name: str, chunk: int, take: int, confirm: str) -> str:
    """Perform an action and return one line that says what was done; "" for "look".

    Raises:
        SettingsError: no run is named, or a deletion was not confirmed by the run's name.
        RunFolderError: as the actions.
    """
    name = run_name.strip()
    if action == "look":
        return ""
    if not name:
        raise SettingsError(f"{action!r} needs run_name; the action look lists all runs")
    if action.startswith("delete") and confirm.strip() != name:
        raise SettingsError(f"nothing was deleted: enter the run's name, {name}, in confirm")
    root = runs_root()
    if action == "delete run":
        freed, left = delete_run(root, name)
        kept = f"; {len(left)} unrecognized files were left in its folder: {', '.join(left[:5])}" if left else ""
        return f"deleted run {name}, {_size(freed)}{kept}"
    if action == "recover manifest":
        with recover(root, name, owner="Run Inspector") as run:
            return (
                f"recovered the manifest from {len(run.manifest.records)} chunk files; run Stream Sampler to continue"
            )
    with RunFolder.open(root, name, write=True, owner="Run Inspector") as run:
        if action == "choose take":
            record = use_take(run, chunk, take)
            return f"chunk {chunk} now uses take {record.take}, seed {record.seed}"
        if action == "set damaged aside":
            names = set_aside_damaged(run)
            return (
                f"set aside {', '.join(names)}; run Stream Sampler to make them again"
                if names
                else "nothing is damaged"
            )
        return f"deleted older takes, {_size(delete_older(run))}"


def runs_stamp() -> tuple[tuple[str, int, int], ...]:
    """Changes when any run below the root changes: its manifest, or a file of a chunk."""
    found = sorted(path for pattern in (MANIFEST, "*.safetensors") for path in runs_root().glob(f"*/{pattern}"))
    return tuple((f"{path.parent.name}/{path.name}", path.stat().st_mtime_ns, path.stat().st_size) for path in found)


def describe(run_name: str) -> tuple[str, Tensor]:
    """A text and a sheet of thumbnails `[1, H, W, 3]`: of one run's chunks, or of all runs when no name is given."""
    if run_name.strip():
        return describe_run(run_name.strip())
    return describe_all()


def describe_all() -> tuple[str, Tensor]:
    """All runs, one line and one image each."""
    root = runs_root()
    found = list_runs(root) if root.is_dir() else []
    lines = [f"{len(found)} runs in {root}", "run | frames | chunks | size | fps | made by | on disk"]
    tiles: list[Tile] = []
    for run in found:
        if isinstance(run, StreamingError):
            lines.append(f"damaged: {run}")
            continue
        folder = RunFolder.open(root, run.name)
        lines.append(
            f"{run.name} | {_video_length(run)} | {len(run.chunks)} | {run.width}x{run.height} | {float(run.fps):g} | "
            f"{run.kind} | {_size(run_bytes(folder.path))}"
        )
        if len(tiles) < MAX_TILES:
            tiles.append((_first_image(folder), [run.name[:26], f"{len(run.chunks)} chunks"]))
    return "\n".join(lines), sheet(tiles)


def describe_run(name: str) -> tuple[str, Tensor]:
    """The chunks of one run, one line and one image each.

    Raises `RunFolderError` when there is no such run or its manifest is not readable.
    """
    run = RunFolder.open(runs_root(), name)
    manifest = run.manifest
    lines = [
        f"{name}: {_video_length(manifest)} frames, {manifest.width}x{manifest.height} at {float(manifest.fps):g} fps, "
        f"made by {manifest.kind}, {_size(run_bytes(run.path))}, {_writer(run.path)}",
        "chunk | frames | seed | status | seconds | on disk | take",
    ]
    if manifest.missing:
        lines.insert(1, f"missing for the present settings: {chunks_text(manifest.missing)}")
    try:
        stream: FrameStream | None = run.frames_stream(sum(record.num_frames for record in manifest.shown))
    except StreamingError:
        stream = None
    tiles: list[Tile] = []
    start = 0
    for index in sorted({record.index for record in manifest.records} | set(manifest.missing)):
        check_cancel()
        record = manifest.chunk(index)
        status = _status(run, index, record)
        lines += [_chunk_line(index, record, start, status), *_take_lines(run, index, record)]
        if len(tiles) < MAX_TILES and (record is not None or index in manifest.missing):
            caption = [f"chunk {index}  {status}", "" if record is None else f"seed {record.seed}"]
            image = None if record is None else _image(stream, start + record.num_frames // 2)
            tiles.append((image, caption))
        start += 0 if record is None else record.num_frames
    return "\n".join(lines), sheet(tiles)


def _chunk_line(index: int, record: ChunkRecord | None, start: int, status: str) -> str:
    if record is None:
        return f"{index} | - | - | {status} | - | - | -"
    return (
        f"{index} | {start}-{start + record.num_frames - 1} | {record.seed} | {status} | {record.seconds:.1f} | "
        f"{_size(record.num_bytes)} | {record.take}"
    )


def _take_lines(run: RunFolder, index: int, current: ChunkRecord | None) -> list[str]:
    """The other takes of a chunk, and how each differs from the current one."""
    lines = []
    for take in run.manifest.takes(index):
        if take == current:
            continue
        # Contents are compared when a take is chosen; to list takes, their sizes must do.
        if not is_intact(run, take, content=False):
            difference = "damaged"
        elif current is None:
            difference = "made with other settings"
        else:
            difference = f"compared with take {current.take}: {take_text(run.manifest, current, take)}"
        lines.append(f"    take {take.take} | seed {take.seed} | {_size(take.num_bytes)} | {difference}")
    return lines


def _status(run: RunFolder, index: int, record: ChunkRecord | None) -> str:
    if record is None:
        return "missing" if index in run.manifest.missing else "not in this video"
    if not is_intact(run, record):
        return "damaged" if (run.path / record.file).exists() else "missing"
    if record.accepts(run.manifest.wanted[index]):
        return "rerolled" if record.rerolled else "complete"
    return "chosen by hand"


def _video_length(manifest: RunManifest) -> str:
    made = sum(record.num_frames for record in manifest.shown)
    wanted = manifest.num_frames or made
    return f"{wanted}" if made >= wanted else f"{made} of {wanted}"


def _writer(folder: Path) -> str:
    """Who writes the run now, from its lock."""
    who = holder(folder / LOCK)
    return f"in use by {who}" if who else "not in use"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def _first_image(folder: RunFolder) -> Tensor | None:
    try:
        return _image(folder.frames_stream(), 0)
    except StreamingError:
        return None


def _image(stream: FrameStream | None, index: int) -> Tensor | None:
    """One frame, or None where it cannot be read."""
    if stream is None or index >= len(stream):
        return None
    try:
        return stream.read(index, index + 1)[0]
    except RunDamagedError:
        return None


def sheet(tiles: Sequence[Tile]) -> Tensor:
    """Images `[H, W, 3]` in 0..1 in rows, each with its lines of text below: `[1, height, width, 3]`.

    A tile without an image is gray; no tiles at all are one of them.
    """
    tiles = list(tiles) or [(None, ["no runs"])]
    images = [None if image is None else _thumbnail(image) for image, _ in tiles]
    high = max([image.height for image in images if image is not None], default=TILE_PX * 9 // 16)
    columns, step = min(COLUMNS, len(tiles)), high + 2 * LINE_PX + 6
    page = Image.new("RGB", (columns * (TILE_PX + 4) + 4, -(-len(tiles) // columns) * step + 4), (24, 24, 24))
    draw = ImageDraw.Draw(page)
    for number, (image, (_, caption)) in enumerate(zip(images, tiles, strict=True)):
        x, y = 4 + number % columns * (TILE_PX + 4), 4 + number // columns * step
        if image is None:
            draw.rectangle((x, y, x + TILE_PX - 1, y + high - 1), fill=(96, 96, 96))
        else:
            page.paste(image, (x, y))
        for line, text in enumerate(caption):
            draw.text((x, y + high + 1 + line * LINE_PX), _printable(text), fill=(230, 230, 230))
    return torch.from_numpy(np.asarray(page, dtype=np.float32) / 255).unsqueeze(0)


def _thumbnail(frame: Tensor) -> Image.Image:
    image = Image.fromarray((frame * 255).round().to(torch.uint8).numpy())
    return image.resize((TILE_PX, max(1, min(2 * TILE_PX, round(TILE_PX * image.height / image.width)))))


def _printable(text: str) -> str:
    """What the built-in letters can draw."""
    return text.encode("latin-1", "replace").decode("latin-1")

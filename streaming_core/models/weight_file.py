"""What a file of weights really is, told by its content: what downloads leave instead, and what wraps a state dict."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError

SAFETENSORS_ENDINGS = (".safetensors", ".sft")
LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors format allows no longer header."""

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.|$)")
_STATE_DICT_NAMES = ("state_dict", "model_state_dict", "model", "module", "params", "network", "net", "unet", "weights")
"""What programs call the weights inside of a pickle, in the order of preference."""
_AVERAGE = re.compile(r"(^|_)(ema|shadow|averaged?)(_|$)")
_TRAINING = re.compile(r"optim|sched|scaler|callback|loops|hyper|config|args")


def is_safetensors(path: str) -> bool:
    """Whether a file begins as safetensors do, whatever its name says: the length of a header, and the header."""
    begin = _first_bytes(path)
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < LONGEST_HEADER


def shards_of(path: str) -> list[str]:
    """All files that the weights at `path` are spread over, in order; just that one where it is no shard.

    Raises `CheckpointError` where the other shards do not lie next to it.
    """
    name = os.path.basename(path)
    shard = _SHARD.search(name)
    if shard is None or int(shard[2]) < 2:
        return [path]
    count = int(shard[2])
    names = [
        f"{name[: shard.start()]}-{number:05d}-of-{shard[2]}{name[shard.end() :]}" for number in range(1, count + 1)
    ]
    paths = [os.path.join(os.path.dirname(path), each) for each in names]
    missing = [each for each, beside in zip(names, paths, strict=True) if not os.path.isfile(beside)]
    if missing:
        raise CheckpointError(
            f"{name} is shard {int(shard[1])} of {count} of a sharded file, a part of the weights only; put the others "
            f"next to it ({missing[0]} is missing)"
        )
    return paths


def refuse_other_content(path: str) -> None:
    """Raise `CheckpointError`, which says what the file at `path` is, unless it may be a whole file of weights."""
    name, size, begin = os.path.basename(path), os.path.getsize(path), _first_bytes(path)
    if not size:
        raise CheckpointError(f"{name} is empty (0 bytes), damaged or cut off; download it again")
    if is_safetensors(path):
        _refuse_cut_off(path, name, size)
        return
    if begin.startswith((b"PK\x03\x04", b"\x80")):
        if path.lower().endswith(SAFETENSORS_ENDINGS):
            raise CheckpointError(
                f"{name} is a pickle as torch.save writes it, not safetensors; give it the ending .ckpt or convert it"
            )
        return
    if begin.startswith(b"GGUF"):
        raise CheckpointError(f"{name} is a GGUF file, which this loader does not read; use a safetensors file")
    _refuse_text(begin, name)


def _first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _refuse_cut_off(path: str, name: str, size: int) -> None:
    """Raise unless all bytes are there that the header of a safetensors file speaks of."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{name} is damaged or cut off (no readable safetensors header); download it again"
        ) from error
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise CheckpointError(f"{name} is damaged or cut off ({size:,} of {whole:,} bytes); download it again")


def _refuse_text(begin: bytes, name: str) -> None:
    text = begin.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{name} is a Git LFS pointer, a text of a few lines that stands for the weights; download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        raise CheckpointError(f"{name} is a web page, not weights; download it again with the page's download button")
    if text.startswith((b"{", b"[")):
        kind = "an index of shards" if b'"weight_map"' in text or b'"metadata"' in text else "a text in JSON"
        raise CheckpointError(f"{name} is {kind}, not weights ({_quoted(begin)}); download the weights themselves")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in begin):
        raise CheckpointError(f"{name} is a text, not weights ({_quoted(begin)}); download it again")


def _quoted(begin: bytes) -> str:
    words = " ".join(begin.decode("utf-8", "replace").split())
    return f'"{words[:60]}{"..." if len(words) > 60 else ""}"'


def state_dict_of(content: Any, name: str) -> dict[str, Tensor]:
    """The tensors of an opened file, out of whatever dicts they lie in; `name` names the file.

    A dict with tensors of its own is taken as it is, else the one whose name is best known. Moving averages count
    only where nothing else is there, the state of an optimizer never. Raises `CheckpointError` when there is none.
    """
    found = next(_state_dicts(content), None)
    if found is None:
        raise CheckpointError(f"{name} does not contain a state dict (no tensors by name); use the official file")
    return found


def _state_dicts(content: Any) -> Iterator[dict[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    nested = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Mapping)}
    # Single numbers (a scale, a step) beside a dict of weights do not make a state dict.
    if any(tensor.ndim for tensor in tensors.values()) or (tensors and not nested):
        yield tensors
    for key in sorted((key for key in nested if not _TRAINING.search(key)), key=_preference):
        yield from _state_dicts(nested[key])
    if not nested and not tensors and not content:
        yield {}


def _preference(key: str) -> tuple[bool, int, str]:
    known = _STATE_DICT_NAMES.index(key) if key in _STATE_DICT_NAMES else len(_STATE_DICT_NAMES)
    return bool(_AVERAGE.search(key)), known, key

"""The tensors of one chunk in one safetensors file: written atomically, read in slices, checked by size and sha256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..atomic import atomic_write
from ..errors import RunDamagedError

_WAY_OUT = "set it aside with Run Inspector, then this chunk alone is made again"
_verified: set[tuple[str, int, int, str]] = set()


@dataclass(frozen=True)
class ChunkFile:
    """Where the tensors of a chunk are and what the file must be."""

    path: Path
    num_bytes: int
    sha256: str

    def check(self, content: bool = True) -> None:
        """Raise unless the file is there, whole and unaltered; its content is hashed once per process and file state.

        Raises:
            RunDamagedError: says which file and what is wrong with it.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise RunDamagedError(f"{self.path} is missing ({error.strerror}); {_WAY_OUT}") from None
        if status.st_size != self.num_bytes:
            raise RunDamagedError(
                f"{self.path} has {status.st_size} bytes and should have {self.num_bytes}: it was cut off or replaced; "
                f"{_WAY_OUT}"
            )
        key = (str(self.path), status.st_mtime_ns, status.st_size, self.sha256)
        if content and key not in _verified:
            if file_sha256(self.path) != self.sha256:
                raise RunDamagedError(f"{self.path} was altered: its checksum does not match; {_WAY_OUT}")
            _verified.add(key)

    def read(self, key: str) -> torch.Tensor | None:
        """One whole tensor, or None when the file has none of that name."""
        return self._read(key, None)

    def read_range(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor; only these are read from the disk."""
        tensor = self._read(key, slice(start, stop))
        if tensor is None:
            raise RunDamagedError(f"{self.path} holds no {key}; {_WAY_OUT}")
        return tensor

    def _read(self, key: str, rows: slice | None) -> torch.Tensor | None:
        self.check()
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                if key not in file.keys():
                    return None
                tensor: torch.Tensor = file.get_tensor(key) if rows is None else file.get_slice(key)[rows]
                return tensor
        except (safetensors.SafetensorError, OSError) as error:
            raise RunDamagedError(f"{self.path} cannot be read ({error}); {_WAY_OUT}") from error

    def keys(self) -> tuple[str, ...]:
        """Names of the tensors in the file."""
        self.check()
        with safetensors.safe_open(self.path, framework="pt") as file:
            return tuple(file.keys())


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_chunk_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> ChunkFile:
    """Write tensors and texts; the file appears under `path` only when it is complete and synced.

    Raises:
        FileExistsError: there is a file of this name; it stays as it was.
        OSError: disk full, folder not writable.
    """
    plain = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    data = safetensors.torch.save(plain, metadata=dict(metadata))
    with atomic_write(path, overwrite=False) as temporary:
        temporary.write_bytes(data)
    status = path.stat()
    digest = hashlib.sha256(data).hexdigest()
    _verified.add((os.fspath(path), status.st_mtime_ns, status.st_size, digest))
    return ChunkFile(path, len(data), digest)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts stored with the tensors.

    Raises:
        RunDamagedError: not a whole safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise RunDamagedError(f"{path} cannot be read ({error}); {_WAY_OUT}") from error

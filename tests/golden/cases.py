"""Recorded cases on disk: a `.json` next to one or more `.safetensors` files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One recorded case. Tensors are read on first use, as float32 where stored as float16, and cloned."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.meta.get("config", {})

    @property
    def name(self) -> str:
        """The name the recorder gave the case; it need not be the file's."""
        return str(self.meta.get("case") or self.path.stem)

    def files(self) -> list[Path]:
        """The safetensors files of the case: those it lists, and those beside it with its stem."""
        listed = [self.path.parent / name for name in self.meta.get("files", []) if str(name).endswith(".safetensors")]
        stem = self.path.stem
        beside = [self.path.with_name(f"{stem}.safetensors"), *sorted(self.path.parent.glob(f"{stem}.*.safetensors"))]
        found = {path for path in [*listed, *beside] if path.is_file()}
        return sorted(found)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, cloned: views into a memory map are unaligned, which alone moves results by 1e-4."""
        merged: dict[str, Tensor] = {}
        for path in self.files():
            merged.update(load_file(path))
        return {
            key: (value.float() if value.dtype == torch.float16 else value).clone() for key, value in merged.items()
        }

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix`, without it."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """Recorded weights under `prefix`, keyed as in the official file without the prefix."""
        return self.group("w." + prefix)

    def input(self, name: str) -> Tensor:
        return self.tensors["in." + name]

    def output(self, name: str) -> Tensor:
        return self.tensors["out." + name]

    def companion(self, name: str) -> Case:
        """The case called `name` recorded beside this one (it may carry the same suffix as this one's file)."""
        suffix = self.path.stem.removeprefix(self.name)
        for stem in (name + suffix, name):
            path = self.path.with_name(stem + ".json")
            if path.is_file():
                return Case(path)
        raise FileNotFoundError(f"case {self.name} at {self.path} needs its companion {name}.json beside it")


def find_cases(paths: list[Path]) -> list[Case]:
    """Every case below the given files and folders, in a stable order."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        found += sorted(path.rglob("*.json")) if path.is_dir() else [path]
    return [Case(path) for path in dict.fromkeys(found)]

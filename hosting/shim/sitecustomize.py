"""Lets a ComfyUI host run on a test machine whose torchvision or torchaudio cannot be used. Developers only.

The registry's torchvision is linked against the CUDA build of torch. Next to a CPU torch its compiled part does not
load, and `import torchvision` then stops because the operators `nms` and `qnms` were never declared. The host needs
torchvision's Python transforms only, so declaring the two operators is enough. torchaudio is imported by the host
when it starts, but used for audio alone; where it is not installed a stand-in fails on use instead of on import.

Python imports this file by itself at start-up when its folder is on PYTHONPATH. A process that is already running
calls `install()`; calling it again changes nothing. Nothing here writes to the host or to the environment.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# The first modules of torchvision that touch its operators; its compiled part has been tried before them.
OPERATOR_USERS = {"torchvision._autograd_registrations", "torchvision._meta_registrations"}
OPERATORS = ("nms", "qnms")


def greedy_nms(boxes, scores, iou_threshold):
    """Indices of the boxes kept by greedy non-maximum suppression; boxes `[n, 4]` as x0 y0 x1 y1, scores `[n]`."""
    import torch

    upper_left = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    lower_right = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (lower_right - upper_left).clamp(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlaps = shared / (areas[:, None] + areas[None, :] - shared) > iou_threshold
    alive, kept = torch.ones_like(scores, dtype=torch.bool), []
    for i in scores.argsort(descending=True).tolist():
        if alive[i]:
            kept.append(i)
            alive &= ~overlaps[i]
    return torch.tensor(kept, dtype=torch.long)


def declare_missing_operators() -> list[str]:
    """Declares those of torchvision's operators that its compiled part has not declared; returns their names."""
    import torch

    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if "nms" in missing:
        torch.library.impl("torchvision::nms", "cpu", greedy_nms)
    return missing


class OperatorFinder(MetaPathFinder):
    """Finds nothing itself: declares the operators just before torchvision first asks for them."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in OPERATOR_USERS:
            declare_missing_operators()
        return None


class Absent:
    """Any attribute of a module that is not installed: fails when called, not when named."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Absent:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Absent(f"{self._name}.{attribute}")

    def __call__(self, *args, **kwargs):
        raise RuntimeError(f"{self._name} was called, but torchaudio is not installed in this test environment.")


class AbsentModule(ModuleType):
    __version__ = "0.0.0"

    def __getattr__(self, attribute: str) -> Absent:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Absent(f"{self.__name__}.{attribute}")


class AbsentAudioFinder(MetaPathFinder, Loader):
    """Stands last in the search, so it is asked for torchaudio only when no real one is installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "torchaudio":
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module):
        pass


def install() -> None:
    """Adds both finders to this process, once."""
    present = {type(finder).__name__ for finder in sys.meta_path}
    if OperatorFinder.__name__ not in present:
        sys.meta_path.insert(0, OperatorFinder())
    if AbsentAudioFinder.__name__ not in present:
        sys.meta_path.append(AbsentAudioFinder())


install()

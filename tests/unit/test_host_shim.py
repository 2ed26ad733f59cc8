"""The stand-ins that let a host start without the compiled part of torchvision and without torchaudio."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dev

spec = importlib.util.spec_from_file_location("shim_under_test", dev.SHIM / "sitecustomize.py")
shim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shim)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two boxes, the long way."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


@given(st.integers(0, 12), st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 0.7]))
def test_nms_keeps_the_best_of_every_crowd(count, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corners, corners + 0.1 + torch.rand(count, 2, generator=generator)], 1)
    scores = torch.rand(count, generator=generator)
    kept = shim.greedy_nms(boxes, scores, threshold).tolist()
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
    for index in range(count):
        better = [k for k in kept if k != index and scores[k] >= scores[index]]
        assert (index in kept) == all(overlap(boxes[index], boxes[k]) <= threshold for k in better)


@pytest.mark.host  # torchvision is installed together with the host
def test_torchvision_and_torchaudio_import_in_a_fresh_process():
    code = (
        "import torchvision.transforms.functional, torchaudio\n"
        "from torchaudio.transforms import MelScale\n"
        "if type(torchaudio).__name__ == 'AbsentModule':\n"
        "    try:\n        torchaudio.functional.resample(1)\n"
        "    except RuntimeError as error:\n        assert 'torchaudio.functional.resample' in str(error)\n"
        "    else:\n        raise SystemExit('a stand-in answered')\n"
    )
    env = dev.child_environment()
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_installing_twice_changes_nothing():
    shim.install()
    before = list(sys.meta_path)
    shim.install()
    assert sys.meta_path == before

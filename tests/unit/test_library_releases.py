"""What this pack takes from diffusers and kornia, with the oldest supported release of each and with the newest.

Releases are installed beside the environment, without their dependencies, into the cache folder; the tests run in a
process of their own that finds that folder first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import dev

pytestmark = pytest.mark.slow

TESTS = {
    "diffusers": ["tests/unit/test_public_unets.py"],
    "kornia": [
        "tests/unit/test_schedules.py::test_clip_pixels_takes_every_size",
        "tests/unit/test_drift.py::test_lab_and_back",
        "tests/unit/test_metrics_measure.py::test_lab_of_known_colors",
        "tests/golden/test_goldens.py::test_recorded_case[streamingsvd/clip_preprocess]",
    ],
}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "10"]


def oldest(package: str) -> str:
    """The lower bound in requirements.txt."""
    text = (dev.ROOT / "requirements.txt").read_text("utf-8")
    [bound] = re.findall(rf"^{package}>=(\S+)$", text, re.MULTILINE)
    return bound


def newest(package: str) -> str:
    """The newest release of the registry; skips without a registry."""
    asked = subprocess.run([*PIP, "index", "versions", package], capture_output=True, text=True)
    found = re.match(rf"{package} \((\S+)\)", asked.stdout)
    if found is None:
        pytest.skip(f"no registry tells the releases of {package}: {asked.stderr.strip()[-200:]}")
    return found[1]


def installed_beside(package: str, version: str) -> Path:
    """A folder that holds this release and nothing else; skips without a registry."""
    folder = dev.cache_folder() / "releases" / f"{package}-{version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole, so that a broken download never looks like a release.
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        target = Path(partial, "whole")
        command = [*PIP, "install", "--quiet", "--no-deps", "--target", str(target), f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{package} {version} cannot be fetched: {done.stderr.strip()[-200:]}")
        if not folder.exists():
            target.rename(folder)
    return folder


@pytest.mark.parametrize("which", [oldest, newest], ids=["oldest", "newest"])
@pytest.mark.parametrize("package", TESTS)
def test_tests_pass_with_this_release(package, which):
    version = which(package)
    folder = installed_beside(package, version)
    env = dev.child_environment()
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(folder)])
    used = f"import {package}; print({package}.__version__, {package}.__file__)"
    told = subprocess.run([sys.executable, "-c", used], cwd=dev.ROOT, env=env, capture_output=True, text=True)
    assert told.stdout.strip() == f"{version} {folder / package / '__init__.py'}", told.stderr[-2000:]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS[package]]
    result = subprocess.run(command, cwd=dev.ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout and "skipped" not in result.stdout, (
        result.stdout[-4000:] + result.stderr[-2000:]
    )

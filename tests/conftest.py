"""Settings of every test: where the host is, the torchvision shim, repeatable properties, what --no-host leaves out."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

import dev

dev.apply_environment()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = pytest.mark.skip(reason="host tests are left out (--no-host)")
    for item in items:
        room = item.path.relative_to(dev.ROOT).parts[1]
        if room in ("host", "browser"):
            item.add_marker(pytest.mark.host)
        if room == "browser":
            item.add_marker(pytest.mark.browser)
        if room == "browser" or "fresh_server" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if os.environ.get("NO_HOST") and item.get_closest_marker("host"):
            item.add_marker(left_out)

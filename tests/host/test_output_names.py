"""Placeholders in names of saved files: the page's and the server's."""

from __future__ import annotations

import time
from pathlib import Path

from hosting.inprocess import import_host, import_pack

import_host()
import_pack()

import folder_paths  # noqa: E402
from comfyui_streamingt2v.nodes.host.video.files import output_file  # noqa: E402


def test_both_kinds_of_placeholders_are_filled_in():
    """The page fills in dates for some of the host's own nodes only, and other programs have no page."""
    path, subfolder = output_file("%date:yyyy-MM%/%year%_%date:MM%_%width%", ".mp4", 64, 32)
    now = time.localtime()
    assert subfolder == f"{now.tm_year}-{now.tm_mon:02}"
    assert (
        path == Path(folder_paths.get_output_directory()) / subfolder / f"{now.tm_year}_{now.tm_mon:02}_64_00001_.mp4"
    )

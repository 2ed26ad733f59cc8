"""Where run folders lie."""

from __future__ import annotations

from pathlib import Path

import folder_paths

RUNS_FOLDER = "streaming_runs"


def runs_root() -> Path:
    """The folder under the host's output directory that holds all run folders."""
    return Path(folder_paths.get_output_directory()) / RUNS_FOLDER

"""Run names become folder names: one level, inside the run root, on every system."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

from ..errors import RunNameError

_MAX_BYTES = 100
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def folder_name(name: str) -> str:
    """The folder name of a run name.

    Harmless names, emoji included, stay as they are. Characters that some system refuses become "_", and what is too
    long is shortened; then eight digits of a hash are added, so that different names never share a folder.

    Raises:
        RunNameError: empty, or with a slash or backslash: a run is one folder inside the root.
    """
    clean = unicodedata.normalize("NFC", name).strip()
    if not clean:
        raise RunNameError("a run needs a name")
    if "/" in clean or "\\" in clean or clean in (".", ".."):
        raise RunNameError(f"run name {name[:60]!r} is a path; give a name without slashes, it becomes one folder")
    safe = "".join("_" if char in '<>:"|?*' or unicodedata.category(char) in ("Cc", "Cs") else char for char in clean)
    safe = re.sub(r"^[.\s]+|[.\s]+$", "_", safe)
    if _RESERVED.fullmatch(safe):
        safe = f"_{safe}"
    encoded = safe.encode("utf-8", "replace")
    if len(encoded) > _MAX_BYTES:
        safe = encoded[: _MAX_BYTES - 9].decode("utf-8", "ignore")
    if safe == clean:
        return safe
    return f"{safe}-{hashlib.sha256(clean.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def run_path(root: str | os.PathLike[str], name: str) -> Path:
    """The folder of a run, inside `root` even when symbolic links are followed. Touches nothing.

    Raises:
        RunNameError: as `folder_name`, or a link that leads out of the root.
    """
    base = Path(root).resolve()
    path = base / folder_name(name)
    if path.resolve() != path:
        raise RunNameError(f"run {name!r} is a link that leads out of {base}; remove it or choose another name")
    return path

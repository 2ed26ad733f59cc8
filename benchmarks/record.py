"""Where measurements go: each script owns one marked section of docs/benchmarks.md and rewrites it whole."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def machine() -> str:
    """The machine in words: the accelerator if there is one, else the processor."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        model = found[1] if found else model
    return f"{os.cpu_count()} cores of {model}, torch {torch.__version__}"


def table(header: list[str], rows: list[list[object]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def record(section: str, command: str, body: str) -> None:
    """Replace the section called `section` (or append it) with `body`, the command, the machine and the date."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    block = f"{begin}\n{body.strip()}\n\n`{command}` on {machine()}, {date.today()}.\n{end}"
    page = PAGE.read_text("utf-8") if PAGE.exists() else "# Benchmarks\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    page = pattern.sub(lambda _: block, page) if pattern.search(page) else f"{page.rstrip()}\n\n{block}\n"
    PAGE.write_text(page, "utf-8")

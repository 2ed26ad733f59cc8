"""Kill a real server at random moments of a video, and record in docs/reliability.md what was lost.

    python -m benchmarks.reliability [--kills 25] [--seed 0] [--record]

Every video is resumed by a fresh server after each kill and compared, bit for bit, with one that was left alone; the
first thing that differs or is lost ends the script with an error.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from benchmarks.crashes import NUM_CHUNKS, crash_videos
from benchmarks.record import machine, table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
SECTION = re.compile(r"<!-- kills -->.*?<!-- /kills -->", re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--record", action="store_true", help="write the result to docs/reliability.md")
    args = parser.parse_args(argv)
    base, began = Path(tempfile.mkdtemp(prefix="reliability-")), time.monotonic()
    try:
        tally = crash_videos(base, args.kills, random.Random(args.seed), lambda line: print(line, flush=True))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    rows = [
        ["servers killed (`kill -9`)", tally.kills],
        [f"videos of {NUM_CHUNKS} chunks finished despite the kills", tally.videos],
        ["kills while a chunk was in progress", tally.in_work],
        ["finished chunks at each kill", ", ".join(map(str, tally.kept))],
        ["finished chunks lost or made again", 0],
        ["tensors of finished videos that differ from those of an uninterrupted video", 0],
        ["files touched outside the run root", 0],
    ]
    body = table(["what", "count"], rows)
    print(body)
    if args.record:
        command = f"python -m benchmarks.reliability --kills {args.kills} --record"
        where = f"`{command}` on {machine()}, {date.today()}, {(time.monotonic() - began) / 60:.0f} minutes."
        block = f"<!-- kills -->\n{body}\n\n{where}\n<!-- /kills -->"
        PAGE.write_text(SECTION.sub(lambda _: block, PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.golden PATH [PATH ...] [--strict]`: replay every recorded case below the given folders."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folder or .json file of recorded cases")
    parser.add_argument("--strict", action="store_true", help="a case that no replay covers is a failure")
    args = parser.parse_args(argv)

    import dev

    dev.ensure_environment("tests.golden")
    from .cases import find_cases
    from .replay import FAIL, NOT_COVERED, judge, load_families

    load_families()
    try:
        cases = find_cases(args.paths)
    except FileNotFoundError as error:
        parser.error(str(error))
    counts: Counter[str] = Counter()
    for case in cases:
        verdict = judge(case)
        counts[verdict.status] += 1
        print(verdict.line(), flush=True)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{len(cases)} cases: {summary or 'none found'}")
    return int(bool(counts[FAIL] or not cases or (args.strict and counts[NOT_COVERED])))


if __name__ == "__main__":
    sys.exit(main())

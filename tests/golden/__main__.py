"""`python -m tests.golden PATH [PATH ...] [--strict]`: replay every recorded case below the given folders."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path


def names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",") if name.strip()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folder or .json file of recorded cases")
    parser.add_argument("--strict", action="store_true", help="a case that no replay covers is a failure")
    parser.add_argument("--only", type=names, metavar="NAMES", help="exact case names, separated by commas")
    parser.add_argument("--skip", type=names, default=set(), metavar="NAMES", help="exact case names to leave out")
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
    known = {case.name for case in cases}
    if unknown := sorted((args.only or set()) - known):
        parser.error(f"no case is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    cases = [case for case in cases if case.name in (args.only or known) - args.skip]
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

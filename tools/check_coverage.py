"""Fail when the lines or the branches covered, each on its own, fall below a threshold.

Coverage's ``fail_under`` mixes lines and branches into one figure, in which many lines hide few branches.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def percentages(totals: dict[str, int]) -> tuple[float, float]:
    """Percent of lines and of branches covered, from the ``totals`` of a coverage JSON report."""

    def percent(covered: int, total: int) -> float:
        return 100.0 * covered / total if total else 100.0

    return (
        percent(totals["covered_lines"], totals["num_statements"]),
        percent(totals["covered_branches"], totals["num_branches"]),
    )


def main() -> int:
    """Read the report named on the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="the file written by `coverage json`")
    parser.add_argument("--lines", type=float, default=95.0, help="least percentage of lines")
    parser.add_argument("--branches", type=float, default=90.0, help="least percentage of branches")
    args = parser.parse_args()
    lines, branches = percentages(json.loads(args.report.read_text())["totals"])
    print(
        f"coverage: lines {lines:.1f} % (at least {args.lines:g}), "
        f"branches {branches:.1f} % (at least {args.branches:g})"
    )
    return 0 if lines >= args.lines and branches >= args.branches else 1


if __name__ == "__main__":
    sys.exit(main())

"""`depthfm compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Subcommands, add_command


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm compare` to the commands."""
    parser = add_command(
        commands,
        "compare",
        compare,
        "Compare two reports of `depthfm evaluate` image by image.",
        "Prints, for each measure, both means, the mean difference with its 95 % interval, and in how many images the "
        "second is better: whether a gain is one. Both must be of the same images under the same protocol.",
    )
    parser.add_argument("first", type=Path, metavar="A.json", help="report to compare with")
    parser.add_argument("second", type=Path, metavar="B.json", help="report that may be better")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE.json", help="also write the comparison as JSON")


def compare(args: argparse.Namespace) -> int:
    """Runs `depthfm compare`: compares two reports."""
    from ..evaluation.runs.comparison import compare_reports, format_comparison, read_report
    from ..utils.files import save_json

    comparison = compare_reports(read_report(args.first), read_report(args.second))
    print(format_comparison(comparison, [str(args.first), str(args.second)]))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        save_json(args.output, comparison)
    return 0

"""Arguments and checks of the commands that write a report and its picture."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path

from .arguments import positive


def add_report_output(parser: argparse.ArgumentParser) -> None:
    """Adds the report's file."""
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="FILE.json", help="report to write")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the number of images, the number of threads, and the report's picture."""
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images (default: all)")
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="CPU threads of each process; another number changes the last digits of scores (default: 1)",
    )
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE.png", help="picture to write (default: --output with .png)"
    )


def check_report_files(output: Path, contact_sheet: Path | None) -> Path:
    """Checks that a report and its picture can be written.

    Args:
        output: The report.
        contact_sheet: The picture; `None` puts it beside the report.

    Returns:
        The picture's file.

    Raises:
        IsADirectoryError: If one of the two is a folder.
        ValueError: If the report's name does not end in `.json`, or both are one file.
    """
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file to write", str(output))
    if output.suffix != ".json":
        # Reports whose names differ in the suffix alone would share their contact sheet and the files to resume from.
        raise ValueError(f"--output {output}: the report is a JSON file, its name must end in .json.")
    sheet = output.with_suffix(".png") if contact_sheet is None else contact_sheet
    if sheet.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file to write", str(sheet))
    if sheet == output:
        raise ValueError(f"--output and --contact-sheet are both {sheet}: give them different names.")
    return sheet

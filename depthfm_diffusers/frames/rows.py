"""Rows of CSV files and of files with one JSON object per line.

A cell of a CSV file is text, whatever it looks like: `NA`, `1984` and `true` are captions like any other, and an empty
cell is empty text. Cells are separated by commas, semicolons or tabs. All files are UTF-8, with or without the byte
order mark that spreadsheets write.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DELIMITERS = ",;\t"


def read_rows(path: Path) -> list[Any]:
    """Reads all rows of a file whose name ends in `.csv`, or else of JSON lines.

    Args:
        path: The file.

    Returns:
        Of a CSV file dictionaries by column: `None` for a cell that the row does not have, and a list under the key
        `None` of cells that no column has. Of JSON lines whatever the lines hold.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If its content is of another form. The message does not name the file.
    """
    text = _decode(path.read_bytes())
    try:
        if path.suffix.lower() == ".csv":
            names, delimiter = _header(text)
            rows = csv.DictReader(io.StringIO(text, newline=""), names, delimiter=delimiter, strict=True)
            return list(rows)[1:]  # without the header
        # Not `splitlines`: strings in JSON may have other line separators.
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"a line is not JSON ({error})") from error


def check_rows(rows: Sequence[Any], path: Path) -> None:
    """Checks that every row has the columns of its file, and no more cells.

    Args:
        rows: From `read_rows`.
        path: The file.

    Raises:
        ValueError: If one has not.
    """
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or None in row:
            raise ValueError(f"{path}, row {number} does not fit the columns: {row!r}.")


def read_column_names(path: Path) -> Sequence[str]:
    """Reads the names of the columns from the first row; the arguments are as for `read_rows`.

    Returns:
        The names; none if the first row has no columns.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is of another form. The message does not name the file.
    """
    with path.open("rb") as file:
        text = _decode(file.readline())
    if path.suffix.lower() == ".csv":
        return _header(text)[0]
    first = json.loads(text)
    return list(first) if isinstance(first, dict) else []


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{error}: save the file as UTF-8 text") from error


def _header(text: str) -> tuple[list[str], str]:
    """Returns the names of the columns of a CSV file, and what separates them."""
    names = []
    for delimiter in DELIMITERS:
        read = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        names.append([name.strip() for name in read])
        if any(name.endswith("file_name") for name in names[-1]):
            return names[-1], delimiter
    return names[0], DELIMITERS[0]

"""Names of a benchmark's files: patterns with placeholders, and lists of the values for them.

In a pattern `{name}` stands for a value, and `{name:06}` for a whole number with leading zeros up to six digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PLACEHOLDER = re.compile(r"\{(\w+)(?::0([1-9]\d*))?\}")


def placeholders(pattern: str) -> set[str]:
    """Returns the names of the placeholders in a pattern.

    Raises:
        ValueError: If the pattern has a brace that belongs to no placeholder.
    """
    rest = PLACEHOLDER.sub("", pattern)
    if "{" in rest or "}" in rest:
        raise ValueError(f"The pattern {pattern!r} has braces that are neither {{name}} nor {{name:06}}.")
    return {match.group(1) for match in PLACEHOLDER.finditer(pattern)}


def fill(pattern: str, values: Mapping[str, str]) -> str:
    """Returns a pattern with values in place of its placeholders.

    Raises:
        KeyError: If there is no value for a placeholder.
    """
    return PLACEHOLDER.sub(lambda match: values[match.group(1)].zfill(int(match.group(2) or 0)), pattern)


def as_glob(pattern: str) -> str:
    """Returns a shell pattern that matches every path of a pattern, and others, which `as_expression` leaves out."""
    parts = PLACEHOLDER.split(pattern)[::3]
    return "*".join(re.sub(r"([*?[])", r"[\1]", part) for part in parts)


def as_expression(pattern: str) -> re.Pattern[str]:
    """Returns a regular expression whose groups are the placeholders; a value has no `/` in it."""
    expression, end, seen = "", 0, set()
    for match in PLACEHOLDER.finditer(pattern):
        name, digits = match.groups()
        value = rf"\d{{{digits}}}" if digits else "[^/]+"
        expression += re.escape(pattern[end : match.start()])
        expression += f"(?P={name})" if name in seen else f"(?P<{name}>{value})"
        seen.add(name)
        end = match.end()
    return re.compile(expression + re.escape(pattern[end:]))


def read_file_list(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """Reads a list of images.

    Lines that start with `#` say where the list is from. The first other line names the columns. Each further line has
    a value for each column, separated by spaces. If it has more values, each of these is the value of the last column
    for one more image: `kitchen_0004 1 2` is image 1 and image 2 of kitchen_0004.

    Args:
        path: The list.
        needed: Columns that it must have.

    Returns:
        The values of each image by column.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a line has too few values, an image is in the list twice, or there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file list {path}.")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    lines = [line for line in lines if line]
    if len(lines) < 2:
        raise ValueError(f"The file list {path} has no images.")
    columns = lines[0]
    missing = sorted(set(needed) - set(columns))
    if missing:
        raise ValueError(
            f"The file list {path} has the columns {', '.join(columns)}, none called {', '.join(missing)}."
        )
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for line in lines[1:]:
        if len(line) < len(columns):
            raise ValueError(f"The file list {path} has the line {' '.join(line)!r}, not {' '.join(columns)!r}.")
        shared = line[: len(columns) - 1]
        for last in line[len(columns) - 1 :]:
            values = (*shared, last)
            if values in rows:
                raise ValueError(f"The file list {path} has {' '.join(values)!r} twice.")
            rows[values] = dict(zip(columns, values, strict=True))
    return list(rows.values())

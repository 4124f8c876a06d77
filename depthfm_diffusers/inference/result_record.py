"""The record of a result folder: `metadata.json`, and the lines that a run adds before they are folded into it.

`metadata.json` has in `runs` the settings of each run, and in `images` the results, each with the number of its run.
While a run goes on, a line is appended to `metadata.partial.jsonl` for each result. When the run ends, the lines are
folded into `metadata.json` and their file is removed. If it was killed, the next run reads them.

The files of a result are first written into a folder of their own, called `.depthfm-` and 16 hexadecimal digits. Then
the line is appended, which names that folder, and then the files are moved to their place. If a run is killed before
the line is written, the next one removes the folder; if it is killed after that, the next one moves the rest of the
files. A result is therefore whole or absent, and the record knows every file of every result.

Both files may come from anywhere. What is read of them is checked, and no name in them leads out of the folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..utils.files import open_without_link

METADATA_NAME = "metadata.json"
LINES_NAME = "metadata.partial.jsonl"
PARTS_NAME = re.compile(r"\.depthfm-[0-9a-f]{16}")
_JSON_NAMES = {str: "string", int: "integer", list: "array", dict: "object"}
FIELDS = {"name": str, "input": str, "files": list, "run": int}


class ResultRecord:
    """The record of a folder; see the module.

    Args:
        folder: The folder. No other process writes into it.
        command: The command that writes the record, for messages.
        metadata_format: What the record says it is.
        values: For `metadata.json`: what the values in each kind of file mean, by the end of the file's name.
        check_entry: Raises `ValueError` if an entry lacks something that the command reads from it.

    Attributes:
        values: As given.
        runs: Settings of each run.
        images: The entry of each result by its name, the latest last.

    Raises:
        OSError: If it cannot be read, or the results of a killed run cannot be moved to their place.
        ValueError: If it was not written by `command`, or is damaged.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        metadata_format: str,
        values: Mapping[str, str],
        check_entry: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.runs: list[dict[str, Any]] = []
        self.images: dict[str, dict[str, Any]] = {}
        self._folder, self._command, self._check_entry = folder, command, check_entry
        self._format, self.values = metadata_format, dict(values)
        self._metadata, self._lines = folder / METADATA_NAME, folder / LINES_NAME
        self._names: defaultdict[str, dict[str, None]] = defaultdict(dict)  # of the results of each input, in order
        self._unplaced: dict[str, dict[str, Any]] = {}  # entries with files not yet in their place, by their folder
        self._run = self._run_in_lines = -1
        self._file: int | None = None
        self._length = 0  # bytes of whole lines
        if os.path.lexists(self._metadata):
            self._read_metadata()
        if os.path.lexists(self._lines):
            self._read_lines()
        self._place_files()
        for path in folder.glob(".depthfm-*"):
            if _is_parts_folder(path):
                shutil.rmtree(path)  # of a result that was not finished

    def begin_run(self, run: Mapping[str, Any], resume: bool) -> int:
        """Starts a run.

        Args:
            run: Settings and versions.
            resume: Whether an earlier run is resumed that differs only in the time when it `started`.

        Returns:
            The number of the run.
        """
        run = json.loads(json.dumps(run))  # as it is after reading
        alike = [
            number
            for number, other in enumerate(self.runs)
            if resume and {**other, "started": None} == {**run, "started": None}
        ]
        if not alike:
            self.runs.append(dict(run))
        self._run = alike[-1] if alike else len(self.runs) - 1
        return self._run

    def entries_of(self, source: Path) -> Iterator[dict[str, Any]]:
        """Yields the entries of an input's results, the latest first."""
        for name in reversed(self._names[str(source)]):
            yield self.images[name]

    def new_parts(self) -> Path:
        """Makes the folder that the files of a result are written into."""
        path = self._folder / f".depthfm-{secrets.token_hex(8)}"
        path.mkdir()
        return path

    def add(self, entry: Mapping[str, Any], parts: Path) -> None:
        """Records a result of the run, then moves its files to their place.

        Args:
            entry: The result. It replaces the entry of the same name.
            parts: From `new_parts`, with the new files of the result.
        """
        added = {"name": entry["name"], "run": self._run} | dict(entry) | {"run": self._run}
        lines: list[dict[str, Any]] = [{"result": added, "parts": parts.name}]
        if self._run_in_lines != self._run:
            lines.insert(0, {"run": self.runs[self._run]})
        if self._length == 0:
            lines.insert(0, {"format": self._format})
        try:
            self._append("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())
        except BaseException:
            shutil.rmtree(parts, ignore_errors=True)
            raise
        self._run_in_lines = self._run
        self._take(added, parts.name)
        self._place_files()

    def fold(self) -> None:
        """Writes `metadata.json` with the results that were added, and removes their lines.

        Runs whose results have all been replaced are dropped, and the others renumbered.

        Raises:
            OSError: If a file cannot be written. The lines are kept then, for the next run.
        """
        try:
            self._place_files()
            if self._length:
                self._write_metadata()
        except OSError as error:
            message = f"cannot write the record; the next run on the folder writes it ({error.strerror})"
            raise type(error)(error.errno, message, str(self._metadata)) from error
        finally:
            if self._file is not None:
                os.close(self._file)
                self._file = None
        self._lines.unlink(missing_ok=True)

    def _write_metadata(self) -> None:
        used = sorted({entry["run"] for entry in self.images.values()})
        numbers = {run: number for number, run in enumerate(used)}
        content = {
            "format": self._format,
            "values": self.values,
            "runs": [self.runs[run] for run in used],
            "images": [{**entry, "run": numbers[entry["run"]]} for entry in self.images.values()],
        }
        parts = self.new_parts()
        try:
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            (parts / METADATA_NAME).write_text(text, encoding="utf-8")
            os.replace(parts / METADATA_NAME, self._metadata)
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    def _take(self, entry: dict[str, Any], parts: str | None = None) -> None:
        """Takes an entry in place of that of the same name; its files may still be in the folder `parts`."""
        name = entry["name"]
        if name in self.images:
            del self._names[self.images.pop(name)["input"]][name]
        self.images[name] = entry
        self._names[entry["input"]][name] = None
        if parts is not None:
            self._unplaced[parts] = entry

    def _place_files(self) -> None:
        """Moves files that are still in folders of parts to their place."""
        for name, entry in list(self._unplaced.items()):
            parts = self._folder / name
            if _is_parts_folder(parts):
                for file in entry["files"]:
                    if (parts / file).is_file() and not (parts / file).is_symlink():
                        os.replace(parts / file, self._folder / file)
                shutil.rmtree(parts)
            del self._unplaced[name]

    def _append(self, content: bytes) -> None:
        """Appends whole lines or nothing; what a killed run left of an incomplete line is cut off."""
        if self._file is None:
            self._file = open_without_link(self._lines, os.O_WRONLY | os.O_CREAT)
        os.lseek(self._file, self._length, os.SEEK_SET)
        os.ftruncate(self._file, self._length)
        written = 0
        while written < len(content):
            written += os.write(self._file, content[written:])
        self._length += len(content)

    def _read_metadata(self) -> None:
        content = self._parse_own(self._metadata, self._metadata.read_bytes() if self._metadata.is_file() else b"")
        try:
            runs, entries = (_checked(content.get(field), list, f"`{field}`") for field in ("runs", "images"))
            self.runs = [_checked(run, dict, f"run {number}") for number, run in enumerate(runs)]
            for number, entry in enumerate(entries):
                self._take(self._checked_entry(entry, f"entry {number} of `images`"))
        except ValueError as error:
            raise self._damaged(str(self._metadata), error) from error

    def _read_lines(self) -> None:
        content = self._lines.read_bytes() if self._lines.is_file() and not self._lines.is_symlink() else b"\n"
        self._length = content.rfind(b"\n") + 1
        lines = content[: self._length].splitlines()
        for text in lines[:1]:
            self._parse_own(self._lines, text)
        run = None
        for number, text in enumerate(lines[1:], start=2):
            try:
                line = _checked(_parse(text), dict, "it")
                if "run" in line:
                    settings = _checked(line["run"], dict, "`run`")
                    if settings not in self.runs:
                        self.runs.append(settings)
                    run = self.runs.index(settings)
                else:
                    entry = _checked(line.get("result"), dict, "`result`")
                    parts = _checked(line.get("parts"), str, "`parts`")
                    if not PARTS_NAME.fullmatch(parts):
                        raise ValueError(f"`parts` is {reprlib.repr(parts)}, which is no folder of this program")
                    self._take(self._checked_entry({**entry, "run": run}, "`result`"), parts)
            except (ValueError, RecursionError) as error:
                raise self._damaged(f"{self._lines}, line {number}", error) from error

    def _parse_own(self, path: Path, content: bytes) -> dict[str, Any]:
        """Parses what says that it was written by the same command.

        Raises:
            ValueError: If it says something else, or is no JSON.
        """
        try:
            parsed = _parse(content)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict) or parsed.get("format") != self._format:
            raise ValueError(
                f"{path} was not written by `depthfm {self._command}`, or is damaged: choose another output folder."
            )
        return parsed

    def _checked_entry(self, entry: Any, what: str) -> dict[str, Any]:
        """Returns an entry that has all that is read from it."""
        _checked(entry, dict, what)
        for field, kind in FIELDS.items():
            _checked(entry.get(field), kind, f"`{field}` of {what}")
        for name in (entry["name"], *entry["files"]):
            check_file_name(name)
        if not 0 <= entry["run"] < len(self.runs):
            raise ValueError(f"{what} is of run {entry['run']}, which is not there")
        self._check_entry(entry)
        return entry

    def _damaged(self, where: str, error: Exception) -> ValueError:
        return ValueError(f"{where} is damaged ({error}): choose another output folder.")


def check_file_name(name: Any) -> None:
    """Checks that a value is the name of a file in a folder, without a path.

    Raises:
        ValueError: If it is not.
    """
    try:
        is_name = os.fsencode(name) not in (b"", b".", b"..") and "\0" not in name and os.path.basename(name) == name
    except (TypeError, UnicodeEncodeError):
        is_name = False
    if not is_name:
        raise ValueError(f"{reprlib.repr(name)} is not the name of a file in this folder")


def _checked(value: Any, kind: type, what: str) -> Any:
    """Returns a value of a type that JSON has."""
    if type(value) is not kind:
        raise ValueError(f"{what} is {reprlib.repr(value)}, not a JSON {_JSON_NAMES[kind]}")
    return value


def _parse(content: bytes) -> Any:
    """Parses JSON without NaN and infinities, which could not be written again."""
    return json.loads(content, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text}")
    return value


def _is_parts_folder(path: Path) -> bool:
    return bool(PARTS_NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()

"""Results of single images on disk while an evaluation runs, so that it can be stopped and go on later.

Beside the report `NAME.json` there is, until it is complete, a folder `NAME.partial/`: `run.json` says what is being
evaluated, `images-R.jsonl` has one line per image, appended by process R and synced to disk. A last line that a kill
has cut short is left out. The processes of a run may be fewer or more than those before: all files are read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ...utils.files import save_json

RUN_NAME = "run.json"
NAMED_IN_MESSAGES = 5


def partial_folder(output: Path) -> Path:
    """Where the results of single images are until `output` is written."""
    return output.with_name(f"{output.stem}.partial")


def begin_run(folder: Path, identity: Mapping[str, Any], started: str) -> None:
    """Makes the folder of a run, if there is none yet.

    Args:
        folder: `partial_folder` of the report.
        identity: What the results depend on; JSON can hold it.
        started: When the run was begun, for the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN_NAME).exists():
        save_json(folder / RUN_NAME, {"started": started, "identity": identity})


def check_run(folder: Path, identity: Mapping[str, Any]) -> str:
    """Checks that the results in a folder are of the same evaluation.

    Args:
        folder: `partial_folder` of the report; `begin_run` has been called.
        identity: What the results depend on now.

    Returns:
        When the run was begun.

    Raises:
        ValueError: If they are of another one, naming what differs, or the folder's `run.json` is damaged.
    """
    path = folder / RUN_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        started, before = content["started"], _flatten(content["identity"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: delete the folder {folder} to start anew.") from error
    now = _flatten(json.loads(json.dumps(identity)))
    absent = "nothing"
    different = [
        f"{name} ({before.get(name, absent)!r} then, {now.get(name, absent)!r} now)"
        for name in {**before, **now}
        if before.get(name, absent) != now.get(name, absent)
    ]
    if different:
        more = f" and {len(different) - NAMED_IN_MESSAGES} more" if len(different) > NAMED_IN_MESSAGES else ""
        raise ValueError(
            f"{folder} has results of another evaluation, which this one cannot go on with. What differs: "
            f"{', '.join(different[:NAMED_IN_MESSAGES])}{more}. Choose another output file, or delete that folder to "
            "start anew."
        )
    return str(started)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads what all processes of a run have written so far.

    Args:
        folder: `partial_folder` of the report.

    Returns:
        The entries by their `key`.

    Raises:
        ValueError: If a line that is not a file's cut-off end cannot be read.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("images-*.jsonl")):
        content = path.read_bytes()
        for number, line in enumerate(content[: _whole_lines(content)].splitlines(), start=1):
            try:
                entry = json.loads(line)
                entries[entry["key"]] = entry
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number} is damaged: delete the line to compute that image again, or the folder "
                    f"{folder} to start anew."
                ) from error
    return entries


def remove_results(folder: Path) -> None:
    """Removes the folder of a run that is complete."""
    shutil.rmtree(folder)


class ResultWriter:
    """Appends entries to one process's file; a context manager.

    Args:
        folder: `partial_folder` of the report.
        process: Number of the process.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self._file = (folder / f"images-{process}.jsonl").open("a+b")
        self._file.seek(0)
        # Without this, the next line would be glued to one that a kill has cut short.
        self._file.truncate(_whole_lines(self._file.read()))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes an entry, which JSON must be able to hold, and waits until it is on disk."""
        self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _whole_lines(content: bytes) -> int:
    """Bytes up to and including the last end of a line."""
    return content.rfind(b"\n") + 1


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Values by their dotted names: `{"a": {"b": 1}}` to `{"a.b": 1}`."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: inner
        for child in value
        for key, inner in _flatten(value[child], f"{name}.{child}" if name else str(child)).items()
    }

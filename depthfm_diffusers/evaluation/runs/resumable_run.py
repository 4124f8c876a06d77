"""A run over many images that can be stopped and resumed, by one process or several, and ends in a report.

While the run goes on, there is a folder `NAME.partial/` beside the report `NAME.json` to come: `run.json` says what
the results depend on, `images-R.jsonl` has one line per image, appended by process R and synced to disk. An incomplete
last line, which a kill leaves, is not read. A resumed run may have more or fewer processes: all files are read.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from ...export.images import save_image
from ...inference.result_folder import now
from ...utils.errors import describe_error
from ...utils.files import atomic_write, open_without_link, save_json
from ...utils.locks import lock_output

RUN_NAME = "run.json"
NAMED_IN_MESSAGES = 5


def run_over_images(
    keys: Sequence[str],
    score: Callable[[int], dict[str, Any]],
    summarize: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    output: Path,
    identity: Mapping[str, Any],
    *,
    order: Sequence[int] | None = None,
    draw: Callable[[Sequence[Mapping[str, Any]]], NDArray[np.uint8]] | None = None,
    picture_path: str | os.PathLike[str] | None = None,
    threads: int = 1,
    processes: PartialState | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Computes the entry of each image once and writes the report; resumes a run that was stopped.

    The report does not depend on where the run was stopped, nor on the number of processes; an earlier report at
    `output` is replaced.

    Args:
        keys: The names of the images, all different.
        score: Returns the entry of an image by its number, with its `key`; JSON can hold it.
        summarize: Returns the report without `per_image` and `time` from the entries, in the order of `keys`.
        output: The JSON file to write; its folder is made if there is none.
        identity: What the results depend on; a run of another identity is refused. JSON can hold it.
        order: Numbers of all images in the order of computation; `None`: that of `keys`.
        draw: Makes a picture from the report's `per_image`: H×W×3. The results of single images are still in their
            folder when it is called.
        picture_path: PNG file to write what `draw` returns to; `None`: none.
        threads: Threads of torch on the CPU, see `limit_threads`.
        processes: The state of the processes that share the work, all calling this with the same arguments and seeing
            the same files; `None` if there is only this one.
        on_progress: Called with the number of images done so far and the number there will be, of this process and
            of what earlier runs have left; first before the first image.

    Returns:
        The report, on every process: what `summarize` returns, then `per_image`, the entries, and `time`: all that
        differs between two runs.

    Raises:
        OSError: If a file cannot be read or written, or another process computes the same report.
        ValueError: If the results in the folder are of another run or damaged.
        RuntimeError: If a process left images out.
    """
    rank, count = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    with ExitStack() as stack:
        if rank == 0:
            output.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_output(output.with_name(f".{output.name}.lock"), output))
        folder = partial_folder(output)

        def wait_for_everyone() -> None:
            if processes is not None:
                processes.wait_for_everyone()

        if rank == 0:
            begin_run(folder, identity, now())
        wait_for_everyone()
        started = check_run(folder, identity)
        done = read_results(folder)
        # No process writes before every process has read: all see the same images done, and agree on who does the rest.
        wait_for_everyone()
        pending = [index for index in order or range(len(keys)) if keys[index] not in done][rank::count]
        found = sum(key in done for key in keys)
        if on_progress is not None:
            on_progress(found, found + len(pending))
        with ResultWriter(folder, rank) as writer, limit_threads(threads):
            for position, index in enumerate(pending, start=1):
                begin = time.perf_counter()
                entry = score(index)
                writer.add({**entry, "seconds": round(time.perf_counter() - begin, 3)})
                if on_progress is not None:
                    on_progress(found + position, found + len(pending))

        wait_for_everyone()
        entries = read_results(folder)
        missing = [key for key in keys if key not in entries]
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(keys)} images were not computed, the first is {missing[0]!r}: do all processes "
                f"write to the same folder {folder}?"
            )
        try:
            seconds = round(sum(entries[key]["seconds"] for key in keys), 3)
            per_image = [{name: value for name, value in entries[key].items() if name != "seconds"} for key in keys]
            report = {
                **summarize(per_image),
                "per_image": per_image,
                "time": {"started": started, "finished": now(), "seconds": seconds},
            }
        except (KeyError, TypeError, AttributeError) as error:
            if not found:
                raise
            raise ValueError(
                f"{folder} has results that lack something ({describe_error(error)}): delete that folder to start anew."
            ) from error
        # No process removes what another is still reading.
        wait_for_everyone()
        if rank == 0:
            if picture_path is not None and draw is not None:
                with limit_threads(threads):
                    picture = draw(per_image)
                with atomic_write(picture_path) as temporary:
                    save_image(temporary, picture)
            save_json(output, report)
            shutil.rmtree(folder)
        return report


@contextmanager
def limit_threads(number: int) -> Iterator[None]:
    """Sets torch's number of threads for a while: sums that are split otherwise have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def named_image(key: str) -> Iterator[None]:
    """Adds the name of an image to the errors that it causes."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        kind = RuntimeError if isinstance(error, RuntimeError) else ValueError
        raise kind(f"image {key!r}: {error}") from error


def partial_folder(output: Path) -> Path:
    """Returns the folder that has the results of single images until `output` is written."""
    return output.with_name(f"{output.stem}.partial")


def begin_run(folder: Path, identity: Mapping[str, Any], started: str) -> None:
    """Makes the folder of a run if there is none yet.

    Args:
        folder: `partial_folder` of the report.
        identity: What the results depend on; JSON can hold it.
        started: When the run was begun, for the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN_NAME).exists():
        save_json(folder / RUN_NAME, {"started": started, "identity": identity})


def check_run(folder: Path, identity: Mapping[str, Any]) -> str:
    """Checks that the results in a folder are of the same run.

    Args:
        folder: `partial_folder` of the report; `begin_run` has been called.
        identity: What the results depend on now.

    Returns:
        When the run was begun.

    Raises:
        ValueError: If they are of another run, naming what differs, or the folder's `run.json` is damaged.
    """
    path = folder / RUN_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        started, before = content["started"], _flatten(content["identity"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: delete the folder {folder} to start anew.") from error
    current = _flatten(json.loads(json.dumps(identity)))
    absent = "nothing"
    different = [
        f"{name} ({before.get(name, absent)!r} then, {current.get(name, absent)!r} now)"
        for name in {**before, **current}
        if before.get(name, absent) != current.get(name, absent)
    ]
    if different:
        more = f" and {len(different) - NAMED_IN_MESSAGES} more" if len(different) > NAMED_IN_MESSAGES else ""
        raise ValueError(
            f"{folder} has results of another evaluation, which cannot be resumed with other settings. What differs: "
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
        ValueError: If a line is damaged; an incomplete last line is left out.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("images-*.jsonl")):
        content = path.read_bytes()
        for number, line in enumerate(content[: _whole_lines(content)].splitlines(), start=1):
            try:
                entry = json.loads(line)
                entries[entry["key"]] = entry
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number} is damaged: delete the line to compute that image again, or the folder "
                    f"{folder} to start anew."
                ) from error
    return entries


class ResultWriter:
    """Appends entries to one process's file; a context manager.

    Args:
        folder: `partial_folder` of the report.
        process: Number of the process.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self._file = open(folder / f"images-{process}.jsonl", "a+b", opener=open_without_link)
        self._file.seek(0)
        # The next line must not be appended to an incomplete one.
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
    """Returns the number of bytes up to and including the last end of a line."""
    return content.rfind(b"\n") + 1


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Returns values by their dotted names: `{"a": {"b": 1}}` to `{"a.b": 1}`."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: inner
        for child in value
        for key, inner in _flatten(value[child], f"{name}.{child}" if name else str(child)).items()
    }

"""A folder that commands write results into, with a record of how each was made; see `result_record`.

A result is replaced only by a later result for the same input; nothing else in the folder is overwritten. One command
at a time writes into a folder.
"""

from __future__ import annotations

import errno
import itertools
import os
import platform
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import PIL
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin

from ..utils.errors import describe_error
from ..utils.locks import LOCK_NAME, lock_output
from ..utils.version import __version__
from .input_files import InputFailure
from .result_record import ResultRecord

T = TypeVar("T")

# Errors of one input, after which the next one is tried.
INPUT_ERRORS = (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError)


class ResultFolder:
    """A folder of results and its `metadata.json`, which is complete once the object is closed.

    Args:
        path: The folder; made if it does not exist.
        command: The command that writes into it, for messages.
        metadata_format: What `metadata.json` says it is.
        values: For `metadata.json`: what the values in each kind of file mean, by the end of the file's name.

    Raises:
        OSError: If it cannot be made or written to, or another command is writing into it.
        ValueError: If it holds a `metadata.json` that `command` did not write, or that is damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], command: str, metadata_format: str, values: Mapping[str, str]
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self._is_new = not self.path.exists()
        if not self._is_new and not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "the output folder is a file", str(path))
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_output(self.path / LOCK_NAME, self.path))
            except BlockingIOError:
                raise
            except OSError as error:
                message = f"cannot write to the output folder: {error.strerror}"
                raise type(error)(error.errno, message, str(path)) from None
            self._record = ResultRecord(self.path, command, metadata_format, values, self.check_entry)
            self._stack = stack.pop_all()
        self._present = {_key(entry) for entry in os.listdir(self.path)}
        self._inputs: set[str] = set()

    def check_entry(self, entry: Mapping[str, Any]) -> None:
        """Checks what a command reads from an entry of the record beside `name`, `input`, `files` and `run`.

        Args:
            entry: The entry, from a file that may come from anywhere.

        Raises:
            ValueError: If something is missing or of another type.
        """

    def results(self) -> list[Path]:
        """Returns the files that earlier runs have written, as absolute paths."""
        return [self.path / file for entry in self._record.images.values() for file in entry["files"]]

    def begin_run(self, run: dict[str, Any], inputs: Iterable[Path], resume: bool = False) -> int:
        """Starts a run, which the results added from now on belong to.

        Args:
            run: Settings and versions, for `metadata.json`.
            inputs: Absolute paths of all inputs of the run; they will not be overwritten.
            resume: Whether an earlier run is resumed that differs only in the time when it `started`.

        Returns:
            The number of the run.
        """
        self._inputs = {_key(path.name) for path in inputs if path.parent == self.path}
        return self._record.begin_run(run, resume)

    def last_entry(self, source: Path, run: int | None = None) -> dict[str, Any] | None:
        """Finds the latest result for an input.

        Args:
            source: The input.
            run: Number of the run that the result must belong to; `None`: any run.

        Returns:
            Its entry in `metadata.json`, or `None`.
        """
        return next((entry for entry in self._record.entries_of(source) if run in (None, entry["run"])), None)

    def choose_name(self, source: Path, endings: Sequence[str], earlier: Mapping[str, Any] | None) -> str:
        """Chooses the NAME in the file names of a result: that of the earlier result, otherwise one that is free.

        The candidates are the file's name without suffix, the same with the suffix appended (`a_png`), and with a
        number from 2 on. A name is free if no other result has it, none of its files is among the inputs, and none
        exists other than those of the earlier result. Letter case and Unicode forms are ignored.

        Args:
            source: The image file.
            endings: What follows NAME in the names of the files to be written.
            earlier: Entry of the result to be replaced, or `None`.

        Returns:
            The name.
        """
        own = {_key(file) for file in earlier["files"]} if earlier else set()

        def is_free(name: str) -> bool:
            entry = self._record.images.get(name)  # of a result with other endings, perhaps
            if entry is not None and entry is not earlier and self._present & {_key(file) for file in entry["files"]}:
                return False
            keys = {_key(name + ending) for ending in endings}
            return not keys & self._inputs and not (keys & self._present) - own

        stem, suffix = source.stem, source.suffix.lstrip(".")
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        candidates = itertools.chain([earlier["name"]] if earlier else [], [stem, f"{stem}_{suffix}"], numbered)
        return next(name for name in candidates if is_free(name))

    def add(self, entry: dict[str, Any], write: Mapping[str, Callable[[Path], object]]) -> None:
        """Writes files of one result, all or none, and records it.

        Args:
            entry: Describes the result: `name` from `choose_name`, `input`, `files` and more. It replaces the entry of
                the same name. The number of the run is added.
            write: For each file to write, a function that writes it to a path; all names are in `files`.
        """
        parts = self._record.new_parts()
        try:
            for file, save in write.items():
                save(parts / file)
        except BaseException:
            shutil.rmtree(parts, ignore_errors=True)
            raise
        self._record.add(entry, parts)
        self._present |= {_key(file) for file in write}

    def close(self) -> None:
        """Writes `metadata.json`; removes the folder if this object has made it and it is still empty.

        Raises:
            OSError: If `metadata.json` cannot be written. Nothing is lost: the next run on the folder writes it.
        """
        with self._stack:
            self._record.fold()
        if self._is_new:
            with suppress(OSError):
                self.path.rmdir()


def process_each(inputs: Iterable[Path], process: Callable[[Path], Iterator[T]]) -> Iterator[T | InputFailure]:
    """Makes the results of inputs, one input after the other; a bad input does not stop the others.

    Args:
        inputs: The input files.
        process: Yields each result of an input once it is written.

    Yields:
        The results; for an input that fails, why, instead of the rest of its results.
    """
    for source in inputs:
        try:
            yield from process(source)
        except INPUT_ERRORS as error:
            yield input_failure(source, error)


def describe_scheduler(scheduler: SchedulerMixin) -> dict[str, Any]:
    """Describes a scheduler for a record: its class and settings."""
    return {
        "class": type(scheduler).__name__,
        **{key: value for key, value in scheduler.config.items() if not key.startswith("_")},
    }


def describe_environment(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Describes what a pipeline runs on for a record: `device`, `dtype` and `versions`."""
    return {
        "device": str(pipe._execution_device),  # of the computation; offloaded networks are elsewhere in between
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": describe_versions(),
    }


def describe_versions() -> dict[str, str]:
    """Returns the versions that results depend on, for a record."""
    return {
        "depthfm_diffusers": __version__,
        "python": platform.python_version(),
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def hardware_name(device: torch.device) -> str:
    """Returns the kind of a device, as far as results depend on it: the GPU's name, or the type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def input_failure(source: Path, error: Exception) -> InputFailure:
    """Returns what an exception says about an input, on one line, which does not begin with its name."""
    return InputFailure(str(source), describe_error(error).removeprefix(f"{source}: "))


def _key(name: str) -> str:
    """Returns the same key for two names that are one file on some file system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

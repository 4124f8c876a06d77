"""A folder that commands write results into, with a record of how each was made.

Every run adds to `metadata.json`: `runs` has the settings of each run, `images` the results, each with the number of
its run. A result is replaced only by a later result for the same input; nothing else in the folder is overwritten.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import platform
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
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
from ..utils.files import atomic_write, save_json
from ..utils.version import __version__
from .input_files import InputFailure

T = TypeVar("T")

METADATA_NAME = "metadata.json"
# Errors of one input, after which the next one is tried.
INPUT_ERRORS = (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError)


class ResultFolder:
    """A folder of results and its `metadata.json`.

    Args:
        path: The folder; made if it does not exist.
        command: The command that writes into it, for messages.
        metadata_format: What `metadata.json` says it is.
        values: For `metadata.json`: what the values in each kind of file mean, by the end of the file's name.

    Raises:
        OSError: If it cannot be made or written to.
        ValueError: If it holds a `metadata.json` that `command` did not write.
    """

    def __init__(
        self, path: str | os.PathLike[str], command: str, metadata_format: str, values: Mapping[str, str]
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self._command, self._format, self._values = command, metadata_format, dict(values)
        self._is_new = not self.path.exists()
        if not self._is_new and not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "the output folder is a file", str(path))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path / ".depthfm-probe"):
                pass
            (self.path / ".depthfm-probe").unlink()
        except OSError as error:
            raise type(error)(error.errno, f"cannot write to the output folder: {error.strerror}", str(path)) from None
        self._runs, self._images = self._read()
        self._run = len(self._runs) - 1
        self._present = {_key(entry) for entry in os.listdir(self.path)}
        self._inputs: set[str] = set()

    def results(self) -> list[Path]:
        """Returns the files that earlier runs have written, as absolute paths."""
        return [self.path / file for entry in self._images for file in entry["files"]]

    def begin_run(self, run: dict[str, Any], inputs: Iterable[Path], resume: bool = False) -> int:
        """Starts a run, which the results added from now on belong to.

        Args:
            run: Settings and versions, for `metadata.json`.
            inputs: Absolute paths of all inputs of the run; they will not be overwritten.
            resume: Whether an earlier run is resumed that differs only in the time when it `started`.

        Returns:
            The number of the run.
        """
        described = json.loads(json.dumps({**run, "started": None}))  # as it is after reading
        alike = [i for i, other in enumerate(self._runs) if resume and {**other, "started": None} == described]
        if not alike:
            self._runs.append(run)
        self._run = alike[-1] if alike else len(self._runs) - 1
        self._inputs = {_key(path.name) for path in inputs if path.parent == self.path}
        return self._run

    def last_entry(self, source: Path, run: int | None = None) -> dict[str, Any] | None:
        """Finds the latest result for an input.

        Args:
            source: The input.
            run: Number of the run that the result must belong to; `None`: any run.

        Returns:
            Its entry in `metadata.json`, or `None`.
        """
        fitting = (e for e in reversed(self._images) if e["input"] == str(source) and run in (None, e["run"]))
        return next(fitting, None)

    def choose_name(self, source: Path, endings: Sequence[str], earlier: Mapping[str, Any] | None) -> str:
        """Chooses the NAME in the file names of a result: that of the earlier result, otherwise one that is free.

        The candidates are the file's name without suffix, the same with the suffix appended (`a_png`), and with a
        number from 2 on. A name is free if none of its files is among the inputs, and none exists other than those of
        the earlier result. Letter case and Unicode forms are ignored.

        Args:
            source: The image file.
            endings: What follows NAME in the names of the files to be written.
            earlier: Entry of the result to be replaced, or `None`.

        Returns:
            The name.
        """
        own = {_key(file) for file in earlier["files"]} if earlier else set()

        def is_free(name: str) -> bool:
            keys = {_key(name + ending) for ending in endings}
            return not keys & self._inputs and not (keys & self._present) - own

        stem, suffix = source.stem, source.suffix.lstrip(".")
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        candidates = itertools.chain([earlier["name"]] if earlier else [], [stem, f"{stem}_{suffix}"], numbered)
        return next(name for name in candidates if is_free(name))

    def add(self, entry: dict[str, Any], write: Mapping[str, Callable[[Path], object]]) -> None:
        """Writes files of one result, all or none, then `metadata.json`.

        Args:
            entry: Describes the result: `name` from `choose_name`, `input`, `files` and more. It replaces the entry of
                the same name. The number of the run is added.
            write: For each file to write, a function that writes it to a path; all names are in `files`.
        """
        with ExitStack() as stack:
            for path, save in [(stack.enter_context(atomic_write(self.path / f)), save) for f, save in write.items()]:
                save(path)
        self._present |= {_key(file) for file in write}
        entry = {"name": entry["name"], "run": self._run} | entry | {"run": self._run}
        self._images = [other for other in self._images if other["name"] != entry["name"]] + [entry]
        self._write()

    def close(self) -> None:
        """Removes the folder if this object has made it and it is still empty."""
        if self._is_new and not any(self.path.iterdir()):
            self.path.rmdir()

    def _read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        path = self.path / METADATA_NAME
        if not path.exists():
            return [], []
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] == self._format:
                return content["runs"], content["images"]
        except (ValueError, TypeError, KeyError, OSError):
            pass
        raise ValueError(
            f"{path} was not written by `depthfm {self._command}`, or is damaged: choose another output folder."
        )

    def _write(self) -> None:
        # Runs whose results have all been replaced are dropped, and the others renumbered.
        used = sorted({entry["run"] for entry in self._images})
        runs = [self._runs[run] for run in used]
        images = [{**entry, "run": used.index(entry["run"])} for entry in self._images]
        content = {"format": self._format, "values": self._values, "runs": runs, "images": images}
        save_json(self.path / METADATA_NAME, content)


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
        "versions": {
            "depthfm_diffusers": __version__,
            "python": platform.python_version(),
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    }


def hardware_name(device: torch.device) -> str:
    """Returns the kind of a device, as far as results depend on it: the GPU's name, or the type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def input_failure(source: Path, error: Exception) -> InputFailure:
    """Returns what an exception says about an input, on one line."""
    return InputFailure(str(source), describe_error(error))


def _key(name: str) -> str:
    """Returns the same key for two names that are one file on some file system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

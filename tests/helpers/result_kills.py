"""Runs predictions that are killed at every step in turn: `python tests/helpers/result_kills.py FOLDER`.

A process of its own, so that it can fork without the threads of a test run. For n = 1, 2, …: writes results into
`FOLDER/stepN`, replaces some of them in a process that is killed (SIGKILL) right before its nth change on disk, or in
the middle of it, and runs that again. Prints one JSON line per n, until a process gets to its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from depthfm_diffusers.inference import prediction_files
from depthfm_diffusers.inference.prediction import Prediction


def predict(folder: Path, value: float, sources: list[Path]) -> None:
    """Writes predictions of constant depth, as `depthfm predict` does."""
    results = prediction_files.PredictionFolder(folder, "gray")
    results.begin_run({"value": value}, sources)
    for source in sources:
        depth = np.full((2, 3), value / 4, dtype=np.float32)
        results.add_prediction(source, Prediction(depth, depth))
    results.close()


def kill_at(step: int) -> None:
    """Makes this process kill itself right before its `step`th change on disk; half of a write is done."""
    left = step

    def counted(function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                if function is write:
                    function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    write = os.write
    for name in ("write", "replace", "mkdir", "rmdir", "unlink", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    for name in ("save_array", "save_image"):
        setattr(prediction_files, name, counted(getattr(prediction_files, name)))


def in_child(folder: Path, sources: list[Path], step: int | None) -> int:
    """Predicts in a forked process; returns what `os.waitpid` says of its end."""
    child = os.fork()
    if child == 0:
        try:
            if step is not None:
                kill_at(step)
            predict(folder, 2.0, sources[:2])
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def main(folder: Path) -> None:
    """See the module's text."""
    sources = [folder / f"{name}.png" for name in "abc"]
    for source in sources:
        source.write_bytes(b"picture")
    for step in range(1, 1000):
        output = folder / f"step{step}"
        predict(output, 1.0, sources)
        status = in_child(output, sources, step)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        sys.stdout.write(json.dumps({"killed": killed, "resumed": in_child(output, sources, None)}) + "\n")
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Python programs in processes of their own, forked from one that has imported the training scripts already.

They run as with `subprocess` and `sys.executable`, and can be killed like any process, without the seconds that it
takes to import torch, diffusers and transformers. Tests of `accelerate launch`, of Python's own start, or of
environment variables that a library reads when it is loaded need `subprocess`.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

_context = get_context("forkserver")
_context.set_forkserver_preload(["datasets", "peft", "transformers", "train_depthfm", "train_depth_controlnet"])


def start(words: Sequence[str], output: Path = Path(os.devnull)) -> ForkServerProcess:
    """Starts a program.

    Args:
        words: What follows `python` on a command line: `SCRIPT ARGUMENT…` or `-c CODE ARGUMENT…`.
        output: File that stdout and stderr are written to.

    Returns:
        The process, to be waited for with `join`; its `exitcode` is minus the signal where it was killed by one.
    """
    before = os.environ.get("PYTHONPATH")
    # The server imports the scripts when it is started, which is at the first call.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    process = _context.Process(target=_run, args=(list(words), str(output)))
    process.start()
    return process


def run(words: Sequence[str], output: Path) -> tuple[int, str]:
    """Runs a program to its end.

    Args:
        words: As for `start`.
        output: File that stdout and stderr are written to.

    Returns:
        Its exit status, and what it wrote.
    """
    process = start(words, output)
    process.join()
    return process.exitcode, output.read_text(encoding="utf-8")


def _run(words: list[str], output: str) -> None:
    """The program, in its process."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

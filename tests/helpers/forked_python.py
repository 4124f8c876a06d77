"""Python programs in processes of their own, forked from one that has imported the training scripts already.

They run as with `subprocess` and `sys.executable`, and can be killed like any process, without the seconds that it
takes to import torch, diffusers and transformers. Tests of Python's own start, or of environment variables that a
library reads when it is loaded, need `subprocess`; or a program that is started here and starts others by itself, as
`accelerate launch` does.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from torch.multiprocessing import start_processes

_context = get_context("forkserver")
_context.set_forkserver_preload(["datasets", "peft", "transformers", "train_depthfm", "train_depth_controlnet"])


def start(
    words: Sequence[str],
    output: Path = Path(os.devnull),
    errors: Path | None = None,
    environment: Mapping[str, str] | None = None,
    processes: int = 1,
) -> ForkServerProcess:
    """Starts a program.

    Args:
        words: What follows `python` on a command line: `SCRIPT ARGUMENT…`, `-m MODULE ARGUMENT…` or
            `-c CODE ARGUMENT…`.
        output: File that stdout is written to, and stderr where `errors` is None.
        errors: File that stderr is written to.
        environment: Environment variables that are added.
        processes: Number of processes that run the program together, with what `accelerate launch` tells each where
            there are several.

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
    process = _context.Process(target=_run, args=(list(words), output, errors, environment or {}, processes))
    process.start()
    return process


def run(words: Sequence[str], output: Path, **options: object) -> tuple[int, str]:
    """Runs a program to its end.

    Args:
        words: As for `start`.
        output: As for `start`.
        **options: Further arguments of `start`.

    Returns:
        Its exit status, and what is in `output`.
    """
    process = start(words, output, **options)
    process.join()
    return process.exitcode, output.read_text(encoding="utf-8")


def _run(words: list[str], output: Path, errors: Path | None, environment: Mapping[str, str], processes: int) -> None:
    """Runs the program in its process, or in processes forked from it."""
    os.environ.update(environment)
    os.dup2(_open(output), 1)
    os.dup2(1 if errors is None else _open(errors), 2)
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        start_processes(_execute_as, (processes, port, words), nprocs=processes, start_method="fork")
    else:
        _execute(words)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def _execute_as(rank: int, processes: int, port: int, words: list[str]) -> None:
    """Runs the program as one of several processes, with what `accelerate launch` tells each."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _execute(words)


def _execute(words: list[str]) -> None:
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

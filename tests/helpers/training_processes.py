"""Runs of the training scripts in processes of their own, which can be killed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

# A server that imports the scripts once and forks for each run: the import takes seconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["helpers.training_preload"])


def start_training(script: str, flags: Sequence[str], messages: Path, before: str | None = None) -> BaseProcess:
    """Starts a training script.

    Args:
        script: Name of its module.
        flags: Its command line.
        messages: File for what it writes to stdout and stderr.
        before: Name of a function in `helpers.training_preload` that is called first.

    Returns:
        The process; its `exitcode` is the negative number of the signal that ended it, and 1 after an exception.
    """
    # As many threads as here, because results depend on their number in the last bits.
    threads = torch.get_num_threads()
    process = _CONTEXT.Process(target=_run, args=(script, list(flags), str(messages), before, threads))
    process.start()
    return process


def run_training(script: str, flags: Sequence[str], messages: Path, before: str | None = None) -> int | None:
    """Runs a training script to its end, and returns its exit code."""
    process = start_training(script, flags, messages, before)
    process.join()
    return process.exitcode


def _run(script: str, flags: list[str], messages: str, before: str | None, threads: int) -> None:
    torch.set_num_threads(threads)
    output = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if before is not None:
        getattr(importlib.import_module("helpers.training_preload"), before)()
    importlib.import_module(script).main(flags)

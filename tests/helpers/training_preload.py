"""What `helpers.training_processes` imports once for all its runs, and the accidents that may happen to them."""

from __future__ import annotations

import os
import resource
import signal
import sys

from helpers.repository import ROOT

sys.path.append(str(ROOT / "training"))

import accelerate.checkpointing
import train_depth_controlnet  # noqa: F401
import train_depthfm  # noqa: F401
from accelerate import Accelerator


def kill_in_the_second_checkpoint() -> None:
    """Ends the process in the second checkpoint, after the model's file and before the optimizer's."""

    def kill(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    _at_the_second_checkpoint(lambda: setattr(accelerate.checkpointing, "save", kill))


def fill_the_disk_at_the_second_checkpoint() -> None:
    """No file may grow over 300 kB from the second checkpoint on: to the program it is as if the disk were full."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))

    _at_the_second_checkpoint(limit)


def _at_the_second_checkpoint(happen) -> None:
    save_state = Accelerator.save_state

    def save_second_state(self, folder, **kwargs):
        if folder.endswith("checkpoint-4"):
            happen()
        return save_state(self, folder, **kwargs)

    Accelerator.save_state = save_second_state

"""`utils/locks.py`: one process at a time, which another refuses or waits for, and no lock outlives its process."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from depthfm_diffusers.utils import locks
from depthfm_diffusers.utils.locks import lock_output


def test_a_second_lock_is_refused_and_names_the_output(tmp_path):
    with lock_output(tmp_path / "lock", tmp_path):
        with (
            pytest.raises(BlockingIOError, match="another command is writing here; wait until it has ended") as caught,
            lock_output(tmp_path / "lock", tmp_path),
        ):
            pass
        assert caught.value.filename == str(tmp_path)
    with lock_output(tmp_path / "lock", tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_can_be_waited_for(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "depthfm_diffusers")
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    order, held = [], threading.Event()

    def first() -> None:
        with lock_output(tmp_path / "lock", tmp_path):
            held.set()
            while "waiting until it has ended" not in caplog.text:
                time.sleep(0.01)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(60)
    with lock_output(tmp_path / "lock", tmp_path, wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_output(tmp_path / "lock", tmp_path):
            os.write(writing, b"1")
            time.sleep(600)
        os._exit(1)
    assert os.read(reading, 1) == b"1"
    with pytest.raises(BlockingIOError), lock_output(tmp_path / "lock", tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "lock").exists()
    with lock_output(tmp_path / "lock", tmp_path):
        pass

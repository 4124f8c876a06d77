"""Locks that keep two commands from writing into one output."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# The lock of a folder that a command writes to, inside it.
LOCK_NAME = ".depthfm.lock"
POLL_SECONDS = 0.5


@contextmanager
def lock_output(lock_file: Path, output: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock on an output while a command writes it; the system frees the lock of a process that is killed.

    Args:
        lock_file: The file to lock, in a folder that exists; it is removed at the end.
        output: The file or folder that is locked, for the message.
        wait: Whether to wait until another process has freed the lock, which the log says, instead of an error.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: If another process holds the lock, and `wait` is false.
        OSError: If the lock file cannot be made, or is a link.
    """
    lock = FileLock(lock_file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        if not wait:
            message = "another command is writing here; wait until it has ended, or choose another output"
            raise BlockingIOError(errno.EWOULDBLOCK, message, str(output)) from None
        logger.info(f"Another command is writing to {output}: waiting until it has ended.")
        lock.acquire(blocking=True, poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        try:
            if isinstance(lock, FileLock):
                # Before the lock is freed: the file may already be that of the next process afterwards. Without
                # support for `flock` it has become a `SoftFileLock`, which removes its file itself.
                with suppress(OSError):
                    os.unlink(lock_file)
        finally:
            lock.release()

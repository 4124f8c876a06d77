"""Runs a shard writer that is killed at every step in turn: `python tests/helpers/kill_points.py FOLDER`.

A process of its own, so that it can fork without the threads of a test run. Writes `FOLDER/reference` undisturbed;
then, for n = 1, 2, …, kills a writer (SIGKILL) right before its nth write to an archive, sync or rename, notes what is
on disk, and runs the writer again. Prints one JSON line per n, until a writer gets to its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training" / "prepare"))

import shard_writer


@dataclass(frozen=True)
class Numbered:
    """A candidate that is only a number."""

    number: int

    @property
    def key(self) -> str:
        """Name of the frame."""
        return f"frame{self.number:03d}"


def encode(candidate: Numbered) -> shard_writer.Sample:
    """Makes some bytes of the number; rejects 3, 4 and 5 (a whole shard) and 7."""
    number = candidate.number
    if number in (3, 4, 5, 7):
        raise shard_writer.FrameRejected("unlucky", f"number {number}")
    files = {"png": random.Random(number).randbytes(3000), "depth.png": bytes([number]), "json": b"{}"}
    return shard_writer.Sample(scene=f"scene{number // 2}", files=files, counts={"sum": number})


def write(output: Path, number: int = 10, shard_size: int = 3, num_workers: int = 2, **settings: object) -> dict:
    """Writes shards of the first `number` candidates, in their order."""
    return shard_writer.write_shards(
        output,
        "toy",
        [Numbered(i) for i in range(number)],
        encode,
        settings={"seed": 0, **settings},
        source={"name": "toy"},
        versions={"toy": "1"},
        shard_size=shard_size,
        num_workers=num_workers,
    )


def digests(folder: Path) -> dict[str, str]:
    """Checksum of each file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_at(step: int) -> None:
    """Makes this process kill itself right before its `step`th write to an archive, sync or rename."""
    left = step

    def counted(function):
        def call(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    tarfile.TarFile.addfile = counted(tarfile.TarFile.addfile)
    os.fsync = counted(os.fsync)
    os.replace = counted(os.replace)


def in_child(output: Path, step: int | None) -> int:
    """Writes in a forked process; returns what `os.waitpid` says of its end."""
    child = os.fork()
    if child == 0:
        # Syncs would take most of the time; a kill, unlike a power cut, loses nothing that was written.
        os.fsync = lambda descriptor: None
        if step is not None:
            kill_at(step)
        write(output)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(folder: Path) -> None:
    """See the module's text."""
    if in_child(folder / "reference", None) != 0:
        raise SystemExit("The undisturbed writer failed.")
    for step in range(1, 1000):
        output = folder / f"step{step}"
        status = in_child(output, step)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        after_kill = digests(output)
        resumed = in_child(output, None)
        result = {"killed": killed, "left": after_kill, "resumed": resumed, "ended": digests(output)}
        sys.stdout.write(json.dumps(result) + "\n")
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What the tests of the preparation scripts share: reading what was written, killing a command."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from helpers.kill_points import digests
from PIL import Image


def read_shards(folder: Path) -> dict[str, dict[str, bytes]]:
    """Files of all frames in a folder's shards, by key and extension."""
    frames: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                assert extension not in frames.setdefault(key, {}), "a second copy"
                frames[key][extension] = tar.extractfile(member).read()
    return frames


def picture(content: bytes) -> np.ndarray:
    """Pixels of an encoded picture."""
    return np.asarray(Image.open(io.BytesIO(content)))


def check_killed_command(script: str, options: list[str], output: Path, reference: Path, shards: int) -> None:
    """Kills `script` once it has written so many shards (0: once it has begun), runs it again, compares bytes."""
    wanted = "*.tar" if shards else "records/settings.json"
    process = subprocess.Popen([sys.executable, script, *options], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(output.glob(wanted))) < max(shards, 1) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    expected = digests(reference)
    left = {name: digest for name, digest in digests(output).items() if name.endswith(".tar")}
    assert len(left) >= shards
    assert all(expected[name] == digest for name, digest in left.items())
    assert subprocess.run([sys.executable, script, *options], capture_output=True).returncode == 0
    assert digests(output) == expected

"""Predicted frames of a clip on disk until its files are written, so that a run that was killed goes on."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...utils.files import atomic_write
from .steady import SteadyState

FRAMES_PER_PART = 16
STATE = "state_"  # before the names of a state's arrays


@dataclass(frozen=True)
class Shot:
    """A shot of a clip.

    Attributes:
        first: Number of its first frame.
        frames: Number of its frames.
        low: Log depth that becomes depth 0.
        high: Log depth that becomes depth 1.
    """

    first: int
    frames: int
    low: float
    high: float


@dataclass(frozen=True)
class StoredFrame:
    """A frame as it was predicted.

    Attributes:
        log_depth: h×w float32, at the size of processing.
        pts: Its time, in units of the clip's time base.
        shot: Number of its shot.
    """

    log_depth: NDArray[np.float32]
    pts: int
    shot: int


class FrameStore:
    """A folder of parts, each with some frames and the state after the last of them.

    Args:
        folder: The folder; made if it does not exist. A part that cannot be read is removed with those after it.

    Attributes:
        folder: As given.
        num_frames: Number of the frames in the parts.
        state: The state after them; `None` if there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.num_frames, self.state = 0, None
        self._parts: list[Path] = []
        self._waiting: list[tuple[SteadyState, int]] = []
        for leftover in folder.glob(".depthfm-*.tmp"):
            leftover.unlink()
        for path in sorted(folder.glob("part-*.npz")):
            state = _read_state(path) if path == self._path(len(self._parts)) else None
            if state is None:
                path.unlink()
            else:
                self._parts.append(path)
                self.num_frames, self.state = state.number, state

    def add(self, state: SteadyState, pts: int) -> None:
        """Adds a frame; it is on disk after `flush`, which happens by itself from time to time."""
        self._waiting.append((state, pts))
        if len(self._waiting) == FRAMES_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Writes the frames that were added since."""
        if not self._waiting:
            return
        states = [state for state, _ in self._waiting]
        path = self._path(len(self._parts))
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            arrays = {
                "log_depth": np.stack([state.log_depth for state in states]),
                "pts": np.array([pts for _, pts in self._waiting]),
                "shot": np.array([state.shot for state in states]),
                "range": np.array([(state.low, state.high) for state in states]),
            }
            arrays |= {STATE + name: array for name, array in states[-1].arrays().items()}
            np.savez(file, allow_pickle=False, **arrays)
        self._parts.append(path)
        self.num_frames, self.state = states[-1].number, states[-1]
        self._waiting.clear()

    def frames(self, count: int) -> Iterator[StoredFrame]:
        """Reads the first `count` frames, in order."""
        done = 0
        for path in self._parts:
            if done == count:
                return
            with np.load(path, allow_pickle=False) as part:
                maps, times, shots = part["log_depth"], part["pts"], part["shot"]
            for log_depth, pts, shot in zip(maps[: count - done], times, shots, strict=False):
                yield StoredFrame(log_depth, int(pts), int(shot))
                done += 1

    def shots(self, count: int) -> list[Shot]:
        """Returns the shots of the first `count` frames, with the range of each."""
        numbers, ranges = [], []
        for path in self._parts:
            with np.load(path, allow_pickle=False) as part:
                numbers.append(part["shot"])
                ranges.append(part["range"])
        shots, spans = np.concatenate(numbers)[:count], np.concatenate(ranges)[:count]
        firsts = [0, *(np.flatnonzero(np.diff(shots)) + 1).tolist(), count]
        # The range of a shot only grows: that of its last frame is the widest.
        return [Shot(a, b - a, *(float(value) for value in spans[b - 1])) for a, b in pairwise(firsts)]

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.npz"


def _read_state(path: Path) -> SteadyState | None:
    """Reads the state after a part; `None` if the file is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
            names = [name for name in part.files if name.startswith(STATE)]
            return SteadyState.from_arrays({name.removeprefix(STATE): part[name] for name in names})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None

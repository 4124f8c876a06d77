"""What the readers of all formats have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .decoding import EncodedFrame

# Where a caption is looked for if the settings do not say, in this order.
CAPTION_NAMES = ("text", "caption", "prompt")
NAMED_IN_MESSAGES = 5


class FrameReader(ABC):
    """Random access to the frames, or captioned images, of one data source, as they are stored.

    Objects are read-only, hold no open file and can be pickled: the workers of a data loader use them, forked or
    spawned.

    Attributes:
        files: The files of the source, in order.
        keys: Name of each frame inside the source.
        scenes: What the source gives as the scene of each frame; `None` if it has no such field.
        has_cameras: Whether every frame says how it was projected.
        shard_of: N, int; number of the shard of each frame, where reading is fast only in a shard's order; `None` for
            random access.
    """

    KIND: ClassVar[str]  # part of the fingerprint

    files: list[Path]
    keys: list[str]
    scenes: list[Any] | None
    has_cameras: bool = False
    shard_of: np.ndarray | None = None

    @abstractmethod
    def encoded(self, index: int) -> EncodedFrame:
        """Reads a frame as it is stored.

        Raises:
            FrameError: If a field of the frame is missing or cannot be read.
            ValueError: If the source has changed since it was opened.
        """

    @abstractmethod
    def scene_file(self, index: int) -> Path:
        """Returns the file that names the scene of a frame, for messages."""

    def content_files(self) -> Iterable[Path]:
        """Returns the files that the frames depend on, in order."""
        return self.files


def first_few(names: Sequence[Any]) -> str:
    """Lists the first few of many names, for messages."""
    more = len(names) - NAMED_IN_MESSAGES
    return ", ".join(map(str, names[:NAMED_IN_MESSAGES])) + (f" and {more} more" if more > 0 else "")

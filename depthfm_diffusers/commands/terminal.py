"""Messages and progress of a command, on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..inference.input_files import InputFailure


def complain(message: str) -> None:
    """Prints a message on stderr, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"depthfm: {message}", file=sys.stderr)


def complain_about(failure: InputFailure) -> None:
    """Prints on stderr why an input gave no result."""
    complain(f"{failure.name}: {failure.reason}")


class Progress:
    """A progress bar of a run that may have been resumed: what was done before does not count as speed.

    Args:
        shown: Whether to show it; it is shown only if stderr is a terminal.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: tqdm | None = None

    def show(self, done: int, total: int) -> None:
        """Moves the bar to `done`."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, initial=done, unit="image", disable=None if self._shown else True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

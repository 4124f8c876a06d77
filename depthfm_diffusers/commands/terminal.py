"""What a command tells its user besides its result."""

from __future__ import annotations

import sys

from tqdm import tqdm

from ..inference.input_files import InputFailure


def complain(message: str) -> None:
    """Prints on stderr, beside a progress bar if there is one."""
    tqdm.write(f"depthfm: {message}", file=sys.stderr)


def complain_about(failure: InputFailure) -> None:
    """Prints on stderr what is wrong with an input."""
    complain(f"{failure.name}: {failure.reason}")


class Progress:
    """A progress bar that begins where a run goes on; what was done before does not count as speed.

    Args:
        shown: Whether there is one, where stderr is a terminal.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: tqdm | None = None

    def show(self, done: int, total: int) -> None:
        """Moves the bar to `done`."""
        if self._bar is None:
            self._bar = tqdm(total=total, initial=done, unit="image", disable=None if self._shown else True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leaves the bar where it is."""
        if self._bar is not None:
            self._bar.close()

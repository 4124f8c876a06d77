"""State of a pipeline's calls, kept apart for each thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident


@dataclass
class _Call:
    """State of one call.

    Attributes:
        num_timesteps: Number of network evaluations per image and ensemble member.
        interrupted: Whether the remaining evaluations are skipped.
    """

    num_timesteps: int = 0
    interrupted: bool = False


class CallStateMixin:
    """Gives each call of a pipeline a state of its own, so that one pipeline can be called from several threads.

    The names are those of diffusers: a callback reads `pipe.num_timesteps` and sets `pipe._interrupt`, which are those
    of its own call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running_calls: dict[int, _Call] = {}  # by thread
        self._last_call = _Call()

    @property
    def num_timesteps(self) -> int:
        """Number of network evaluations per image and ensemble member: of this thread's call, else of the last one."""
        return self._this_call.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the remaining evaluations are skipped, see `_interrupt`."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        """Set to `True` in a callback, it interrupts that call; in a thread that makes no call, all running calls."""
        return self._this_call.interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        own = self._running_calls.get(get_ident())
        for call in [*self._running_calls.values(), self._last_call] if own is None else [own]:
            call.interrupted = value

    @property
    def _this_call(self) -> _Call:
        return self._running_calls.get(get_ident(), self._last_call)

    @contextmanager
    def _new_call(self, num_timesteps: int) -> Iterator[None]:
        """Keeps the state of a call while it runs."""
        thread, call = get_ident(), _Call(num_timesteps)
        outer = self._running_calls.get(thread)
        self._running_calls[thread] = call
        try:
            yield
        finally:
            # A callback may have called its own pipeline.
            if outer is None:
                del self._running_calls[thread]
            else:
                self._running_calls[thread] = outer
            self._last_call = call

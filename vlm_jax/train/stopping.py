"""Signals to stop: SIGTERM, which schedulers send before they take the machine back, and Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Signal to stop the run, raised by `StopSignal`."""


class StopSignal:
    """Handler of signals to stop, from its creation until `restore`.

    A single process stops between two steps, or at once where it waits for data or evaluates. With several processes,
    jax handles SIGTERM and makes all of them stop after the same step or batch.
    """

    def __init__(self) -> None:
        self.was_interrupt = False
        self._seen = self._at_once = False
        self._checks = 0
        self._previous: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def check(self) -> None:
        """Raise `Stopped` if a signal came; several processes call it equally often and raise at the same call."""
        self._checks += 1
        if self._seen or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._checks)):
            raise Stopped

    @contextlib.contextmanager
    def ends_at_once(self) -> Iterator[None]:
        """Return a context in which a signal raises `Stopped` at once; its body must not change the training state."""
        if self._seen:
            raise Stopped
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        again, self._seen = self._seen, True
        self.was_interrupt = number == signal.SIGINT
        if again and self.was_interrupt:  # a second Ctrl-C does not wait for the save
            raise KeyboardInterrupt
        if self._at_once:
            self._at_once = False
            raise Stopped

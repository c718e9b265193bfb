"""A progress bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self


class Progress:
    """Shows how far a long job is. Use as a context manager.

    Args:
      label: What is being done.
      total: Number of items, None where it is not known.
      enabled: False on every process but one.
      start: Items done before, by an earlier run.
    """

    def __init__(self, label: str, total: int | None, *, enabled: bool = True, start: int = 0) -> None:
        self.label, self.total, self.enabled = label, total, enabled
        self.done = self.start = start
        self.terminal = sys.stderr.isatty()
        self.began = time.monotonic()
        self.shown = self.began if not self.terminal else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled and (self.terminal or kind is None):
            self._show("\n" if self.terminal else "")

    def advance(self, items: int = 1, note: str = "") -> None:
        """Counts items as done and shows it: at most five times a second on a terminal, else every ten seconds."""
        self.done += items
        now = time.monotonic()
        if self.enabled and now - self.shown >= (0.2 if self.terminal else 10):
            self.shown = now
            self._show("", note)

    def _show(self, ending: str, note: str = "") -> None:
        seconds = time.monotonic() - self.began
        rate = (self.done - self.start) / seconds if seconds > 0 else 0.0
        text = f"{self.label}: {self.done}" + (f"/{self.total}" if self.total else "") + f" ({rate:.3g}/s)"
        if self.total and rate and self.done < self.total:
            text += f", {duration(int((self.total - self.done) / rate))} left"
        text += f"  {note}" if note else ""
        if self.terminal:
            share = min(self.done / self.total, 1.0) if self.total else 0.0
            bar = "#" * round(20 * share)
            sys.stderr.write(f"\r\x1b[K[{bar:<20}] {text}{ending}")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def duration(seconds: int) -> str:
    """`75` -> '1m15s'."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"

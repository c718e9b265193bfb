"""Progress of long jobs: a bar on a terminal, a line every ten seconds elsewhere."""

import sys

from tqdm import tqdm

LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):
    """Progress of a long job, used as a context manager.

    Args:
      label: Name of the job.
      total: Number of items, None if it is not known.
      enabled: If true, progress is shown; false on every process but one.
      start: Number of items that an earlier run has done.
    """

    monitor_interval = 0  # no thread

    def __init__(self, label: str, total: int | None, *, enabled: bool = True, start: int = 0) -> None:
        self.terminal = sys.stderr.isatty()
        # Log files take whole lines, the first one after ten seconds.
        form = {"mininterval": 0.2, "dynamic_ncols": True}
        if not self.terminal:
            form = {"mininterval": 10, "delay": 10, "bar_format": LINE}
        super().__init__(desc=label, total=total, initial=start, disable=not enabled, miniters=1, **form)

    def advance(self, items: int = 1, note: str = "") -> None:
        """Count `items` more items as done and show a note on the last one."""
        if note:
            self.set_postfix_str(note, refresh=False)
        self.update(items)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the bar or the line; tqdm calls this method when an update is due."""
        if self.terminal:
            super().display(msg, pos)
        else:
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Show the last state of the job; the context manager calls this method."""
        if not self.terminal and not self.disable:
            self.display()
            self.disable = True
        super().close()

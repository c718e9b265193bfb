"""A progress bar on a terminal, a line every ten seconds elsewhere."""

import sys

from tqdm import tqdm

LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):
    """Shows how far a long job is. Use as a context manager.

    Args:
      label: What is being done.
      total: Number of items, None where it is not known.
      enabled: False on every process but one.
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
        """Count items as done, with a note on the last of them."""
        if note:
            self.set_postfix_str(note, refresh=False)
        self.update(items)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the bar, or a line; tqdm calls it when it is time."""
        if self.terminal:
            super().display(msg, pos)
        else:
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Show how far the job came; the context manager calls it."""
        if not self.terminal and not self.disable:
            self.display()
            self.disable = True
        super().close()

"""Log of metrics: `workdir/metrics.jsonl` with one JSON object per line, and TensorBoard if it is installed."""

import importlib.util
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlm_jax.files import finite, write_atomically


class MetricsLog:
    """Writer that appends metrics by step.

    Args:
      workdir: Folder of the run.
      step: Step that the run starts from; lines that an interrupted run logged beyond it are dropped.
      enabled: If false, nothing is written; true on one process only.
    """

    def __init__(self, workdir: Path, step: int, *, enabled: bool = True) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self.path = workdir / "metrics.jsonl"
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        kept = "".join(f"{line}\n" for line in text.splitlines() if _step(line) <= step)
        if kept != text:
            write_atomically(self.path, kept.encode())
        self.file = self.path.open("a")
        self.board = None
        if importlib.util.find_spec("tensorboard"):
            # TensorBoard's own switch for running without TensorFlow, whose import takes seconds and GPU memory.
            sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
            from tensorboard.summary import Writer

            self.board = Writer(str(workdir / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line; keys keep their order, and a number that is not finite becomes null."""
        if not self.enabled:
            return
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        self.file.write(json.dumps(finite({"step": step, **values}), allow_nan=False) + "\n")
        self.file.flush()
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered and close the files."""
        if self.enabled:
            self.file.close()
            if self.board:
                self.board.close()


def _step(line: str) -> float:
    """Return the step of a logged line; infinity for a line that a killed run left half written."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")

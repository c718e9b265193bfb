"""Progress on terminals and in log files."""

import sys
import weakref

import pytest

from vlm_jax import progress
from vlm_jax.progress import Progress


def test_a_log_file_takes_whole_lines_now_and_then(monkeypatch, capsys):
    now = 0.0
    made = progress.tqdm.__init__

    def clocked(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self._time, self.start_t, self.last_print_t = (lambda: now), 0.0, 0.0

    monkeypatch.setattr(progress.tqdm, "__init__", clocked)
    with Progress("steps", 4) as shown:
        for step in range(4):
            now += 6
            shown.advance(note=f"loss {step}")
    text = capsys.readouterr().err
    assert "\r" not in text
    assert [line.split(" [")[0] for line in text.splitlines()] == ["steps: 2/4", "steps: 4/4", "steps: 4/4"]
    assert text.splitlines()[0].endswith("loss 1]")


def test_a_short_job_leaves_one_line(capsys):
    with Progress("steps", 4, start=1) as shown:
        shown.advance(2)
    assert capsys.readouterr().err.startswith("steps: 3/4 [")


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    # Bars that other tests left open would move this one down.
    monkeypatch.setattr(progress.tqdm, "_instances", weakref.WeakSet())
    with Progress("steps", 4) as shown:
        shown.advance(3, "loss 3")
    text = capsys.readouterr().err
    assert text.startswith("\rsteps:   0%|")
    assert "3/4" in text.split("\r")[-1]
    assert "loss 3" in text.split("\r")[-1]
    assert text.endswith("\n")


@pytest.mark.parametrize("total", [4, None])
def test_one_process_shows_it(total, capsys):
    with Progress("steps", total, enabled=False) as shown:
        shown.advance(3, "note")
    assert capsys.readouterr().err == ""

import runpy
import sys

import pytest


@pytest.fixture
def command(root, monkeypatch, capsys):
    """Runs a script of launch/ in this process: what it printed, and its error line."""

    def run(script, *words):
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.syspath_prepend(str(root / "launch"))
        try:
            runpy.run_path(f"launch/{script}.py", run_name="__main__")
        except SystemExit as ended:
            if ended.code != 1:
                raise
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        return said.out, errors[0] if errors else ""

    return run

"""Settings of all tests, made before jax starts: four CPU devices and quick compiling. Results depend on neither."""

import os
import runpy
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests spend most of their time on compiling, and in float64 on running compiled programs; level 1 minimises the sum.
# Workers, subprocesses and later runs share compiled programs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "vlm_jax" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest
from xdist.scheduler import LoadScopeScheduling

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_matmul_precision", "highest")

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]


def pytest_addoption(parser):
    parser.addoption("--golden", default=str(ROOT / "tests" / "golden"), help="folder of SYSTEM/CASE.json golden cases")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


FIRST = ("golden milnce", "golden lfb", "golden groundnlq", "launch/test_commands", "systems/lfb/test_task")
FIRST += ("systems/groundnlq", "systems/milnce", "train", "launch", "systems/lfb")
"""Longest groups of tests, run first so that no worker is left alone with one of them at the end."""


def group_of(nodeid):
    """Return the group of a test, which one worker runs as a whole: its file, or the golden cases of its system."""
    path, _, test = nodeid.partition("::")
    name = path.removeprefix("tests/").removesuffix(".py")
    return f"golden {test.split('[')[-1].split('/')[0]}" if name == "golden/test_golden" else name


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    rank = {name: number for number, name in enumerate(FIRST)}

    def place(item):
        return min((rank[name] for name in FIRST if group_of(item.nodeid).startswith(name)), default=len(FIRST))

    items.sort(key=place)


class Groups(LoadScopeScheduling):
    """Scheduler that hands whole groups to workers."""

    def _split_scope(self, nodeid):
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log)


@pytest.fixture(scope="session")
def root():
    """Return the root folder of the checkout."""
    return ROOT


@pytest.fixture
def command(root, monkeypatch, capsys):
    """Return a function that runs a script of launch/ in this process and returns its output and its error line."""

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

"""Set before jax starts: four CPU devices and quick compiling; results do not depend on either."""

import os
import runpy
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Compiling is what tests spend their time on; subprocesses share what this session has compiled.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
CACHE = Path(os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="vlm_jax_compiled_")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_matmul_precision", "highest")

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]


def pytest_addoption(parser):
    parser.addoption("--golden", default=str(ROOT / "tests" / "golden"), help="folder of SYSTEM/CASE.json golden cases")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def root():
    """The checkout."""
    return ROOT


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

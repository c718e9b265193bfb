"""The library from a wheel: outside of its checkout, with nothing of it in reach."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vlm_jax.interop import paddle_files

pytestmark = pytest.mark.slow

SHAPES = {
    "v2s_lt_weights": (24, 16),
    "s2s_lt_weights": (10, 16),
    "mid_out_weights": (12, 64, 1, 1),
    "sim_mat_weights": (3, 12, 1, 1),
}
OPTIONAL = ("tensorflow", "tensorflow_datasets", "av", "sklearn", "lmdb", "tensorboard", "PIL", "cv2")
"""Packages of extras; what needs one of them that is not here is not imported."""

PIP = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
PIP += ["--disable-pip-version-check"]

SCRIPT = """
import importlib, pathlib, pkgutil, sys

folder, work = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(folder))
import vlm_jax

assert pathlib.Path(vlm_jax.__file__).is_relative_to(folder), vlm_jax.__file__
found = sorted(module.name for module in pkgutil.walk_packages(vlm_jax.__path__, "vlm_jax."))
for name in found:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        assert (error.name or "").partition(".")[0] in {optional!r}, f"{{name}}: {{error}}"
        continue
    assert pathlib.Path(module.__file__).is_relative_to(folder), module.__file__
print("modules", *found)

from vlm_jax import config, convert, inference
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import restore_variables

assert config.system_names() == {systems!r}, config.system_names()
checkpoint = convert.checkpoint_path("released:ctrl")
assert checkpoint.is_dir()
found = convert.convert("ctrl", work / "TALL.pdparams", work / "converted")
assert found.arrays == 4
made = config.find(work / "converted")
restore_variables(work / "converted", get_task(made).abstract_variables())
assert convert.revert(work / "converted", work / "back.pdparams") == 4
assert inference.load(work / "converted").config.model.dim == 16
"""


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory):
    """A folder with the wheel's content, built from a copy so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "vlm_jax", "configs", "launch", "data_prep"):
        os.symlink(root / name, folder / "source" / name)
    done = subprocess.run(
        [*PIP, "--target", folder / "installed", folder / "source"],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "installed"


def test_it_works_from_a_wheel(root, installed, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    paddle_files.save(tmp_path / "TALL.pdparams", arrays)
    cache = tmp_path / "home" / ".cache" / "vlm_jax" / "released" / "ctrl"
    cache.mkdir(parents=True)
    paddle_files.save(cache / "TALL.pdparams", arrays)
    names = sorted(path.name for path in (root / "vlm_jax" / "systems").iterdir() if (path / "__init__.py").is_file())
    script = SCRIPT.format(optional=OPTIONAL, systems=names)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, installed, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home")},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = next(line for line in done.stdout.splitlines() if line.startswith("modules ")).split()[1:]
    files = (root / "vlm_jax").rglob("*.py")
    ours = {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files}
    assert set(found) == ours - {"vlm_jax"}, "every module of the checkout is in the wheel"
    assert sorted(path.name for path in installed.iterdir() if path.suffix != ".dist-info") == ["vlm_jax"]

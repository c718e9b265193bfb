"""Who may import whom (ARCHITECTURE.md), and life without TensorFlow."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMERIC = {"jax", "flax", "optax", "orbax"}
ALLOWED = {
    "configs": {"vlm_jax.config", "ml_collections"},
    "vlm_jax/convert.py": {"vlm_jax.config", "vlm_jax.interop", "vlm_jax.tasks.task", "vlm_jax.train", "jax"},
    "vlm_jax/inference.py": {"vlm_jax.config", "vlm_jax.convert", "vlm_jax.tasks", "vlm_jax.train", "vlm_jax.video"}
    | {"vlm_jax.text", "vlm_jax.types", "jax", "numpy", "ml_collections"},
    "vlm_jax/tasks": {"vlm_jax.models", "vlm_jax.losses", "vlm_jax.ops", "vlm_jax.metrics", "vlm_jax.text"}
    | {"vlm_jax.interop", "vlm_jax.config", "vlm_jax.types", "vlm_jax.tasks", "jax", "numpy", "ml_collections"},
    "vlm_jax/train": {"vlm_jax.tasks.task", "vlm_jax.ops", "vlm_jax.config", "vlm_jax.types", "vlm_jax.progress"}
    | {"vlm_jax.train", "numpy", "ml_collections", "tensorboard", *NUMERIC},
    "vlm_jax/models": {"vlm_jax.models", "vlm_jax.ops", "jax", "flax", "numpy"},
    "vlm_jax/losses": {"vlm_jax.ops", "jax"},
    "vlm_jax/ops": {"vlm_jax.ops", "jax", "numpy"},
    "vlm_jax/data": {"vlm_jax.data", "vlm_jax.video", "vlm_jax.text", "vlm_jax.types"}
    | {"numpy", "tensorflow", "tensorflow_datasets"},
    "data_prep": {"data_prep", "vlm_jax.data", "vlm_jax.video", "vlm_jax.text", "vlm_jax.progress"}
    | {"vlm_jax.interop", "numpy", "tensorflow", "tensorflow_datasets", "apache_beam", "lmdb"},
    "vlm_jax/metrics": {"vlm_jax.metrics", "numpy", "sklearn"},
    "vlm_jax/text": {"vlm_jax.text", "numpy", "sentencepiece"},
    "vlm_jax/interop": {"vlm_jax.interop", "numpy", "ml_dtypes"},
    "vlm_jax/video": {"vlm_jax.video", "numpy", "av"},
    "vlm_jax/types.py": {"numpy"},
    "vlm_jax/progress.py": set(),
    "vlm_jax/config.py": {"ml_collections"},
}


def imported(path, inside_functions=True):
    """Absolute names that a file imports."""
    tree = ast.parse(path.read_text())
    hidden = set()
    if not inside_functions:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        hidden = {id(child) for function in functions for child in ast.walk(function)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources(place):
    path = ROOT / place
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def within(name, allowed):
    root = name.split(".")[0]
    return root in sys.stdlib_module_names or any(name == known or name.startswith(known + ".") for known in allowed)


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_point_downwards(place):
    assert sources(place)
    for path in sources(place):
        # A task reaches its data inside functions, so that it lives without TensorFlow.
        names = imported(path, inside_functions=place != "vlm_jax/tasks")
        wrong = sorted(name for name in names if not within(name, ALLOWED[place]))
        assert not wrong, f"{path.relative_to(ROOT)} may not import {wrong}"


def test_every_part_has_its_rule():
    for path in sources("vlm_jax"):
        place = path.relative_to(ROOT)
        if path.name != "__init__.py":
            assert str(place) in ALLOWED or str(place.parent) in ALLOWED, f"no rule for {place}"


def test_tensorflow_and_orbax_have_one_home():
    for path in [*sources("vlm_jax"), *sources("launch"), *sources("data_prep"), *sources("configs")]:
        place = str(path.relative_to(ROOT))
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"tensorflow", "tensorflow_datasets"} or place.startswith(("vlm_jax/data/", "data_prep/"))
        assert "orbax" not in roots or place == "vlm_jax/train/checkpoint.py"
        assert "torch" not in roots


def test_train_save_and_embed_without_tensorflow(tmp_path):
    """In a Python whose packages are links to all but TensorFlow and its company."""
    packages = tmp_path / "packages"
    packages.mkdir()
    absent = ("tensorflow", "keras", "tensorboard", "tf_keras", "grain", "array_record", "tensorflow_datasets")
    for folder in {Path(entry) for entry in sys.path if entry.endswith("site-packages")}:
        for entry in folder.iterdir():
            if not entry.name.startswith(absent) and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(packages)!r}]
import importlib.util
assert importlib.util.find_spec("tensorflow") is None
from pathlib import Path
from vlm_jax import config, inference
from vlm_jax.tasks.task import get_task
from vlm_jax.train.loop import train
import numpy as np
made = config.load("configs/milnce_howto100m.py:smoke", ["--config.steps=1", "--config.batch_size=2"])
state = train(get_task(made), made, Path({str(tmp_path / "run")!r}))
assert int(state.step) == 1
model = inference.load({str(tmp_path / "run")!r})
assert model.encode_video(np.zeros((8, 32, 32, 3), np.uint8)).shape == (32,)
assert model.encode_video("data_prep/clips/race1906.mp4").shape == (32,)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]

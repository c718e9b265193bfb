"""Who may import whom (ARCHITECTURE.md), and life without TensorFlow."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMERIC = {"jax", "flax", "optax", "orbax"}
BASE = {"vlm_jax.types", "vlm_jax.errors", "vlm_jax.files"}
DATA_FILES = ("data.py", "evaluation_data.py")
"""Files of a system that may import TensorFlow; its other files reach them inside functions only."""
NUMPY_DATA = {f"vlm_jax.data.{name}" for name in ("pipeline", "order", "synthetic", "protocol")}
"""Modules of `vlm_jax.data` without TensorFlow: all that the other files of a system may import at the top."""
TENSORFLOW_DATA = {"vlm_jax.data", "tensorflow", "tensorflow_datasets"}
ALLOWED = {
    "configs": {"vlm_jax.config", "vlm_jax.systems", "ml_collections"},
    "data_prep": {"data_prep", "vlm_jax", "numpy", "tensorflow", "tensorflow_datasets", "apache_beam", "lmdb"}
    | {"spacy", "nltk"},
    "vlm_jax/convert.py": {"vlm_jax.config", "vlm_jax.interop", "vlm_jax.references", "vlm_jax.task"}
    | {"vlm_jax.train", "jax", *BASE},
    "vlm_jax/references.py": {"vlm_jax.config", "vlm_jax.interop", "ml_collections", *BASE},
    "vlm_jax/inference.py": {"vlm_jax.config", "vlm_jax.convert", "vlm_jax.extraction", "vlm_jax.predictor"}
    | {"vlm_jax.task", "vlm_jax.train", *BASE},
    "vlm_jax/predictor.py": {"vlm_jax.extraction", "vlm_jax.train", "jax", "numpy", "ml_collections", *BASE},
    "vlm_jax/extraction.py": {"vlm_jax.features", "vlm_jax.text_features", "numpy", "ml_collections", *BASE},
    "vlm_jax/figures.py": {"vlm_jax.video", "numpy", "matplotlib", *BASE},
    "vlm_jax/systems": {"vlm_jax.task", "vlm_jax.config", "vlm_jax.models", "vlm_jax.losses", "vlm_jax.ops"}
    | {"vlm_jax.metrics", "vlm_jax.text", "vlm_jax.video", "vlm_jax.interop", "vlm_jax.annotations"}
    | {"vlm_jax.features", "vlm_jax.text_features", "vlm_jax.train", "vlm_jax.predictor", "vlm_jax.extraction"}
    | {*NUMPY_DATA, "vlm_jax.array_files", "jax", "flax", "numpy", "ml_collections", "sklearn", "cv2", "PIL"}
    | {"matplotlib", "yaml", *BASE},
    "vlm_jax/train": {"vlm_jax.train", "vlm_jax.task", "vlm_jax.config", "vlm_jax.references", "vlm_jax.ops", *BASE}
    | {"vlm_jax.progress", "numpy", "ml_collections", "tensorboard", *NUMERIC},
    "vlm_jax/models": {"vlm_jax.models", "vlm_jax.ops", "jax", "flax", "numpy"},
    "vlm_jax/losses": {"vlm_jax.ops", "jax"},
    "vlm_jax/ops": {"vlm_jax.ops", "jax", "numpy"},
    "vlm_jax/data": {*TENSORFLOW_DATA, "vlm_jax.array_files", "vlm_jax.video", "vlm_jax.text", *BASE, "numpy"},
    "vlm_jax/data/pipeline.py": {*NUMPY_DATA, *BASE, "numpy"},
    "vlm_jax/data/order.py": {*NUMPY_DATA, *BASE, "numpy"},
    "vlm_jax/data/synthetic.py": {*NUMPY_DATA, *BASE, "numpy"},
    "vlm_jax/data/protocol.py": {*BASE},
    "vlm_jax/metrics": {"vlm_jax.metrics", "vlm_jax.errors", "numpy"},
    "vlm_jax/text": {"vlm_jax.text", "vlm_jax.errors", "vlm_jax.files", "numpy", "sentencepiece"},
    "vlm_jax/interop": {"vlm_jax.interop", "vlm_jax.errors", "vlm_jax.files", "numpy", "ml_dtypes"},
    "vlm_jax/video": {"vlm_jax.video", "vlm_jax.errors", "numpy", "av"},
    "vlm_jax/task.py": {"vlm_jax.config", "vlm_jax.types", "jax", "ml_collections"},
    "vlm_jax/annotations.py": {"vlm_jax.errors"},
    "vlm_jax/array_files.py": {"numpy"},
    "vlm_jax/features.py": {"vlm_jax.array_files", "vlm_jax.errors", "vlm_jax.files", "numpy"},
    "vlm_jax/text_features.py": {"vlm_jax.array_files", "vlm_jax.errors", "vlm_jax.features", "vlm_jax.files", "numpy"},
    "vlm_jax/config.py": {"vlm_jax.config_rules", "vlm_jax.errors", "vlm_jax.files", "ml_collections"},
    "vlm_jax/config_rules.py": set(),
    "vlm_jax/types.py": {"numpy"},
    "vlm_jax/errors.py": set(),
    "vlm_jax/files.py": set(),
    "vlm_jax/progress.py": {"tqdm"},
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


def system_of(path):
    """The system that a file belongs to, None for shared files."""
    parts = path.relative_to(ROOT).parts
    return parts[2] if parts[:2] == ("vlm_jax", "systems") and len(parts) > 3 else None


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_point_downwards(place):
    assert sources(place)
    for path in sources(place):
        # A system reaches its data inside functions, so that it lives without TensorFlow.
        hidden = system_of(path) is not None and path.name not in DATA_FILES
        names = imported(path, inside_functions=not hidden)
        # Each system may import itself.
        own = {f"vlm_jax.systems.{system_of(path)}"} if system_of(path) else set()
        own |= TENSORFLOW_DATA if path.name in DATA_FILES else set()
        wrong = sorted(name for name in names if not within(name, ALLOWED[place] | own))
        assert not wrong, f"{path.relative_to(ROOT)} may not import {wrong}"


def test_no_system_is_imported_by_another_or_by_shared_code():
    for path in sources("vlm_jax"):
        own = system_of(path)
        for name in imported(path):
            parts = name.split(".")
            if parts[:2] == ["vlm_jax", "systems"] and len(parts) > 2:
                assert parts[2] == own, f"{path.relative_to(ROOT)} imports {name}"


def test_every_part_has_its_rule():
    for path in sources("vlm_jax"):
        place = path.relative_to(ROOT)
        if path.name != "__init__.py" and system_of(path) is None:
            assert str(place) in ALLOWED or str(place.parent) in ALLOWED, f"no rule for {place}"


def test_no_circles():
    """Between modules, imports at the top of files only."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources("vlm_jax")}
    known = {name.removesuffix(".__init__"): path for name, path in modules.items()}

    def module_of(name):
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    arrows = {
        name: {module_of(target) for target in imported(path, inside_functions=False)} - {"", name, "vlm_jax"}
        for name, path in known.items()
    }
    done = set()

    def visit(name, above):
        assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for target in arrows[name]:
                visit(target, [*above, name])
            done.add(name)

    for name in arrows:
        visit(name, [])


def test_tensorflow_and_orbax_have_one_home():
    for path in [*sources("vlm_jax"), *sources("launch"), *sources("data_prep"), *sources("configs")]:
        place = str(path.relative_to(ROOT))
        roots = {name.split(".")[0] for name in imported(path)}
        at_home = place.startswith(("vlm_jax/data/", "data_prep/")) or (system_of(path) and path.name in DATA_FILES)
        assert not roots & {"tensorflow", "tensorflow_datasets"} or at_home, place
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
from vlm_jax.task import get_task
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

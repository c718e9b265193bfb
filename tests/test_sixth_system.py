"""A system that the library does not know: a folder, `tests/sixth/toy`, goes through everything without a change.

Found by its name, fed from records, trained, evaluated, converted both ways, and loaded for prediction.
"""

import json

import numpy as np
import pytest
import toy

from vlm_jax import config as configs
from vlm_jax import convert, inference, references
from vlm_jax.interop import torch_files
from vlm_jax.task import get_task

CONFIG = """
from vlm_jax.systems.toy.config import default_config

VARIANTS = ("longer",)


def get_config(variant=""):
    config = default_config()
    config.data.directory = {directory!r}
    config.steps = 60 if variant == "longer" else 6
    config.schedule.learning_rate = 0.1
    return config
"""


@pytest.fixture(autouse=True)
def installed():
    with toy.installed():
        yield


@pytest.fixture
def config(tmp_path):
    """A file of configs, and the records that it names."""
    configs.system_module("toy", "data").write(tmp_path / "data", "train", range(100, 140))
    configs.system_module("toy", "data").write(tmp_path / "data", "held", range(21))
    (tmp_path / "toy_run.py").write_text(CONFIG.format(directory=str(tmp_path / "data")))
    return tmp_path / "toy_run.py"


@pytest.fixture
def reference(tmp_path):
    """A checkpoint file of the reference, which knows the truth."""
    file = tmp_path / "toy.pth"
    arrays = {"linear.weight": toy.TRUTH.T.copy(), "linear.bias": np.zeros(2, np.float32), "seen": np.array(7)}
    torch_files.save(file, arrays)
    return file


def test_its_config_names_it(config):
    assert "toy" in configs.system_names()
    made = configs.load(f"{config}:longer", ["--config.batch_size=4"])
    assert (made.task, made.steps, made.batch_size) == ("toy", 60, 4)
    assert get_task(made).name == "toy"


def test_it_is_trained_and_evaluated_from_records(config, tmp_path, command):
    out, error = command("train", "--config", f"{config}:longer", "--workdir", tmp_path / "run")
    assert not error
    assert "toy: 60 steps of 8 examples" in out
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.05 * losses[0]
    out, error = command("evaluate", "--config", config, "--workdir", tmp_path / "run")
    assert not error
    written = json.loads((tmp_path / "run" / "results" / "held.json").read_text())
    assert written["metrics"]["items"] == 21
    assert written["metrics"]["error"] < 0.5
    assert written["protocol"] == {"task": "regression"}
    assert "error" in out


def test_its_checkpoints_are_converted_both_ways(reference, config, tmp_path, command):
    out, error = command(
        "convert_checkpoint", "--system", "toy", "--source", reference, "--output", tmp_path / "converted"
    )
    assert not error
    assert "3 arrays, 11 numbers" in out
    command("evaluate", "--config", config, "--workdir", tmp_path / "run", "--checkpoint", tmp_path / "converted")
    found = json.loads((tmp_path / "run" / "results" / "held.json").read_text())["metrics"]
    assert found["error"] == pytest.approx(0, abs=1e-9)
    back = tmp_path / "back.pth"
    _, error = command("convert_checkpoint", "--reverse", "--source", tmp_path / "converted", "--output", back)
    assert not error
    arrays = torch_files.load(reference)
    for name, array in torch_files.load(back).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_its_published_checkpoint_is_found_and_starts_a_run(reference, config, tmp_path, command, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / ".cache" / "vlm_jax" / "released" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy.pth").write_bytes(reference.read_bytes())
    assert references.released_checkpoints()["toy"][0] == "toy"
    words = ["--config", config, "--workdir", tmp_path / "run", "--config.init_from=released:toy"]
    out, error = command("train", *words)
    assert not error
    assert "released:toy: 3 arrays taken, none left fresh, none unused" in out
    (first, *_) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["loss"] < 1e-5, "it began with the truth"


def test_its_predictor_is_loaded(reference, tmp_path):
    convert.convert("toy", reference, tmp_path / "converted")
    predictor = inference.load(tmp_path / "converted")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(predictor.predict(x), x @ toy.TRUTH, rtol=1e-5)

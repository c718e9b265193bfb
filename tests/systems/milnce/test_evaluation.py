"""The linear evaluation of MIL-NCE's features, from films to accuracies."""

import csv
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_prep.milnce import prepare as preparation
from vlm_jax import config as configs
from vlm_jax.errors import ConfigError
from vlm_jax.systems.milnce.evaluation_data import classification_pipeline
from vlm_jax.systems.milnce.linear_probe import linear_probe
from vlm_jax.systems.milnce.task import summarize_linear
from vlm_jax.task import get_task
from vlm_jax.train import evaluate, sharding
from vlm_jax.types import DataShard
from vlm_jax.video.write import write_video

CONFIG = Path(__file__).parents[3] / "configs" / "milnce_howto100m.py"
COLOURS = {"brush_hair": (200, 40, 40), "cart_wheel": (40, 200, 40), "wave": (40, 40, 200)}
PER_CLASS = 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Three classes that colour tells apart; a list whose splits each leave other videos for the test, and one out."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    rows = [["video_id", "label", "split1", "split2", "split3"]]
    for label, colour in COLOURS.items():
        (folder / label).mkdir()
        for number in range(PER_CLASS):
            noise = rng.integers(-40, 40, (11 + number, 40, 48, 3))
            write_video(folder / label / f"{number}.mp4", (noise + colour).astype(np.uint8), 25)
            codes = [0 if number == 3 and split == 0 else 1 + (number == split) for split in range(3)]
            rows.append([f"{number}.mp4", f"{label}_test", *codes])
    with open(folder / "hmdb51.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([rows[0], *rng.permutation(rows[1:]).tolist()])
    inputs = ["--csv", folder / "hmdb51.csv", "--videos", folder, "--output", folder / "made"]
    preparation.main(["hmdb51", *map(str, inputs), *"--windows 3 --num_frames 8 --size 32 --num_shards 2".split()])
    return folder / "made"


def make_config(directory, **changes):
    config = configs.load(f"{CONFIG}:smoke")
    made = {"directory": str(directory), "split": "videos", "windows": 3, "flipped": False}
    with config.unlocked():
        config.linear = ConfigDict({"films": {**made, **changes}})
    config.model.blocks = ("3b",)
    return config


@pytest.fixture(scope="module")
def variables(directory):
    """Made weights that keep the scale of what goes through them."""
    rng = np.random.default_rng(0)

    def make(leaf):
        if len(leaf.shape) < 2:
            return np.ones(leaf.shape, leaf.dtype)
        return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(leaf.dtype)

    return jax.tree.map(make, get_task(make_config(directory)).abstract_variables())


def run(config, variables):
    evaluator = get_task(config).evaluators["films"]
    return evaluator, evaluate.run(evaluator, variables, sharding.make_mesh(config.mesh), config.evaluate.batch_size)


def test_three_splits_and_their_mean(directory, variables, tmp_path):
    evaluator, evaluation = run(make_config(directory), variables)
    metrics = evaluation.metrics
    accuracies = [metrics[f"accuracy/split{number}"] for number in (1, 2, 3)]
    assert metrics["accuracy/mean"] == pytest.approx(np.mean(accuracies))
    assert metrics["videos"] == 12
    assert min(accuracies) == 1.0, "colours are told apart"
    evaluate.write_results(tmp_path, "films", evaluation, evaluator, {})
    protocol = json.loads((tmp_path / "films.json").read_text())["protocol"]
    assert (protocol["windows"], protocol["flipped"], protocol["frames"], protocol["size"]) == (3, False, 8, 32)


def test_features_are_the_encoder_s_own(directory, variables):
    """Every window's, mirrored ones behind them where they are wanted; the classifier fits all of them."""
    (batch,) = classification_pipeline(str(directory), "videos", 3, 8, 32, DataShard(0, 1, 12))
    assert sorted(batch["label"].tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    task = get_task(make_config(directory))
    encode = jax.jit(task.encoders["video"])

    def features(windows):
        return np.asarray(encode(variables, {"video": windows.reshape(-1, 8, 32, 32, 3)})["mixed_5c"])

    plain = features(batch["video"]).reshape(12, 3, -1)
    mirrored = features(np.ascontiguousarray(batch["video"][:, :, :, :, ::-1])).reshape(12, 3, -1)
    assert np.abs(mirrored - plain).max() > 1e-3 * np.abs(plain).max()
    for flipped, expected in ((False, plain), (True, np.concatenate([plain, mirrored], 1))):
        _, evaluation = run(make_config(directory, flipped=flipped), variables)
        outputs = evaluation.outputs
        np.testing.assert_allclose(outputs["features"], expected, rtol=1e-4, atol=1e-5 * np.abs(plain).max())
        np.testing.assert_array_equal(outputs["label"], batch["label"])
        for number, codes in enumerate(batch["splits"].T, start=1):
            fitted = linear_probe(outputs["features"], batch["label"], codes == 1, codes == 2)
            assert evaluation.metrics[f"accuracy/split{number}"] == fitted.accuracy


def test_a_split_that_cannot_be_scored():
    labels, features = np.array([0, 0, 1]), np.zeros((3, 2, 4), np.float32)
    for codes, found in (([1, 1, 2], "1 classes and 1 test"), ([1, 1, 1], "2 classes and 0 test")):
        outputs = {"features": features, "label": labels, "splits": np.array([codes] * 3).T}
        with pytest.raises(ConfigError, match=f"config.linear.films: split 1 has training videos of {found} videos"):
            summarize_linear("films", outputs)


def test_without_scikit_learn_it_is_said_at_once(directory, monkeypatch):
    evaluator = get_task(make_config(directory)).evaluators["films"]
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install 'vlm_jax\[eval\]'"):
        evaluator.data(DataShard())


def test_names_are_taken_once(directory):
    config = make_config(directory)
    retrieval = {"directory": "", "split": "test", "windows": 1, "frame_order": "filmed"}
    with config.unlocked():
        config.retrieval = ConfigDict({"films": retrieval, "other": retrieval})
    with pytest.raises(ConfigError, match=r"config.linear.films: config.retrieval has an evaluator of that name"):
        get_task(config)
    published = configs.load(str(CONFIG))
    assert get_task(published).evaluators.keys() == {"youcook2", "msrvtt", "hmdb51"}
    assert published.linear.hmdb51.flipped is False

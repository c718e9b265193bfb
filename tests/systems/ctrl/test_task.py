"""CTRL as a task: one loss on any number of devices, and from files to found moments."""

import json
import subprocess
import sys

import ctrl_files
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.systems.ctrl import data
from vlm_jax.systems.ctrl.task import load, make_model, make_sample_spec
from vlm_jax.task import get_task
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables
from vlm_jax.train.loop import train
from vlm_jax.train.optimizer import path_name
from vlm_jax.types import DataShard

CONFIG = "configs/ctrl_tacos.py"


@pytest.fixture(autouse=True)
def in_checkout(root, monkeypatch):
    monkeypatch.chdir(root)


def test_published_recipes():
    ours = configs.load(CONFIG)
    assert (ours.batch_size, ours.epochs, ours.schedule.learning_rate, ours.optimizer.clip_norm) == (56, 25, 1e-3, 5.0)
    assert ours.optimizer.epsilon_before_correction
    specs = get_task(ours).batch_specs[""]
    assert {name: spec.shape for name, spec in specs.items()} == {
        "visual": (56, 12288),
        "sentence": (56, 4800),
        "offsets": (56, 2),
    }
    original = configs.load(f"{CONFIG}:original")
    assert (original.steps, original.schedule.learning_rate, original.optimizer.clip_norm) == (20000, 5e-3, 0.0)
    assert original.data.unique_clips
    biases = [leaf.shape for leaf in jax.tree.leaves(get_task(original).abstract_variables()) if leaf.ndim == 1]
    assert sorted(biases) == [(3,), (1000,), (1024,), (1024,)]
    words = ["batch_size=8", "schedule.learning_rate=0.1", "epochs=2", "log_every=3", "seed=9"]
    changed = configs.load(CONFIG, [f"--config.{word}" for word in words])
    assert (changed.batch_size, changed.epochs, changed.seed, changed.log_every) == (8, 2, 9, 3)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch_groups=2", "config.batch_groups: CTRL compares all sentences of a batch with all its windows"),
        ("model.normalisation=l2", "config.model.normalisation: 'l2' is not one of added, floor"),
    ],
)
def test_mistakes_are_named(word, message):
    with pytest.raises(ConfigError, match=message):
        get_task(configs.load(f"{CONFIG}:smoke", [f"--config.{word}"]))


def test_the_loss_is_one_of_the_whole_batch_on_any_number_of_devices():
    """Not the mean of losses of parts: on 2 and 4 devices value and gradients are those on 1."""
    task = get_task(configs.load(f"{CONFIG}:smoke"))
    (specs,) = task.batch_specs.values()
    batch = next(iter(SyntheticPipeline(specs, DataShard(batch_size=8, seed=2))))
    with jax.enable_x64(True):
        params = task.init(jax.random.key(0), {name: value.astype(np.float64) for name, value in batch.items()})
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
        batch = {name: value.astype(np.float64) for name, value in batch.items()}
        gradient = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))
        found = {}
        for count in (1, 2, 4):
            devices = np.array(jax.devices()[:count]).reshape(count, 1)
            mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
            placed = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
            found[count] = jax.device_get(gradient(placed, {}, sharding.shard_batch(mesh, batch), jax.random.key(0)))
        parts = [{name: value[half] for name, value in batch.items()} for half in (slice(0, 4), slice(4, 8))]
        means = np.mean([task.loss_fn(params, {}, part, None)[0] for part in parts])
    assert abs(means - found[1][0][0]) > 1e-3
    for count in (2, 4):
        for path, leaf in jax.tree_util.tree_leaves_with_path(found[1]):
            other = dict(jax.tree_util.tree_leaves_with_path(found[count]))[path]
            np.testing.assert_allclose(other, leaf, rtol=1e-9, atol=1e-15, err_msg=f"{count}: {path_name(path)}")


EIGHT = """
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
from vlm_jax import config as configs
from vlm_jax.systems.ctrl.task import load, make_model
from vlm_jax.task import get_task
from vlm_jax.train import sharding
config = configs.load("configs/ctrl_tacos.py:smoke")
task, rng = get_task(config), np.random.default_rng(0)
batch = {name: rng.normal(size=spec.shape) for name, spec in task.batch_specs[""].items()}
params = task.init(jax.random.key(0), batch)["params"]
spread = sharding.shard_batch(sharding.make_mesh(config.mesh), batch)
one, eight = (float(jax.jit(task.loss_fn)(params, {}, x, jax.random.key(0))[0]) for x in (batch, spread))
np.testing.assert_allclose(eight, one, rtol=1e-12)
print(len(spread["visual"].sharding.device_set), "devices")
"""


def test_the_loss_on_eight_devices_is_that_on_one(root):
    done = subprocess.run([sys.executable, "-c", EIGHT], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "8 devices", done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ctrl_files.prepare(ctrl_files.write(tmp_path_factory.mktemp("moments"), videos=12))


def make_config(folder, **changes):
    config = configs.load(f"{CONFIG}:smoke")
    config.data.synthetic = False
    config.data.windows, config.data.queries = str(folder / "windows"), str(folder / "queries")
    config.batch_size, config.schedule.learning_rate = 16, 0.02
    config.model.dim, config.model.hidden_dim = 32, 48
    config.evaluate.batch_size, config.tile.sentences, config.tile.windows = 16, 4, 16
    made = {"windows": config.data.windows, "queries": config.data.queries, "split": "test"}
    made |= {"thresholds": (0.3, 0.5), "ks": (1, 5), "count_videos_without_windows": False}
    with config.unlocked():
        config.moments = ConfigDict({"things": {**made, **changes}})
    return config


def test_it_learns_to_find_moments_resumes_in_mid_epoch_and_writes_what_it_found(folder, tmp_path):
    config = make_config(folder)
    config.steps, config.checkpoint.every_steps = 200, 75
    whole = train(get_task(config), config, tmp_path / "whole")
    config.steps = 75
    train(get_task(config), config, tmp_path / "parts")
    config.steps = 200
    resumed = train(get_task(config), config, tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)

    task = get_task(config)
    variables = restore_variables(checkpoint_folder(tmp_path / "parts"), task.abstract_variables())
    evaluator, mesh = task.evaluators["things"], sharding.make_mesh(config.mesh)
    evaluation = evaluate.run(evaluator, variables, mesh, 16)
    found = evaluation.metrics
    assert found["sentences"] == 12
    assert found["R@1,IoU=0.3"] > 0.9
    assert found["R@1,IoU=0.5"] > 0.5
    assert found["R@5,IoU=0.5"] >= found["R@1,IoU=0.5"]
    assert found["mIoU"] > 0.5
    assert evaluate.run(evaluator, variables, mesh, 40).metrics == found, "batch size changes a metric"
    untrained = evaluate.run(evaluator, task.init(jax.random.key(5), zeros(task)), mesh, 16).metrics
    assert untrained["R@1,IoU=0.3"] < 0.6

    evaluate.write_results(tmp_path / "results", "things", evaluation, evaluator, {})
    read = {path.name: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert read.keys() == {"things.json", "things_recall.json", "things_predictions.json", "things_queries.jsonl"}
    assert json.loads(read["things_recall.json"])["results"]["best_R1_IOU5"] == found["R@1,IoU=0.5"]
    predictions = json.loads(read["things_predictions.json"])["results"]
    assert [entry[0] for entry in predictions["s11-d_11.avi"]] == list(range(12))
    lines = [json.loads(line) for line in read["things_queries.jsonl"].splitlines()]
    windows = data.load_windows(str(folder / "windows"), {"s11-d_11.avi"}, make_sample_spec(config))
    for line, entry in zip(lines, predictions["s11-d_11.avi"], strict=True):
        # Predictions are unclipped in the reference's form, and clipped to the video in ours.
        assert line["frames"][0][:2] == [entry[1], min(entry[2], windows[0].num_frames)]
        scores = [segment[2] for segment in line["frames"]]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(np.array(line["seconds"])[:, :2] * 20, np.array(line["frames"])[:, :2])
    assert "left out" in json.loads(read["things.json"])["protocol"]["average"]


def zeros(task):
    (specs,) = task.batch_specs.values()
    return {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}


def test_scores_are_the_model_s_own_whole_matrix(folder):
    """The evaluator's segments from one call of the network over all windows and sentences of the video."""
    config = make_config(folder, thresholds=(1.05,), ks=(1, 400))  # suppression allows any overlap
    task = get_task(config)
    variables = task.init(jax.random.key(1), zeros(task))
    evaluator = task.evaluators["things"]
    batches = list(evaluator.data(DataShard(0, 1, 64)))
    visual, sentence = (np.concatenate([batch[name] for batch in batches]) for name in ("visual", "sentence"))
    out = np.asarray(make_model(config).apply(variables, visual, sentence[:12]))
    best = evaluate.run(evaluator, variables, sharding.make_mesh(config.mesh), 16).outputs["best"]
    windows = load(config, config.data.windows, config.data.queries, "test")[0].videos[0].spans
    segments = windows + out[:, : len(windows), 1:].astype(np.float64)
    for row in range(12):
        order = np.argsort(out[row, : len(windows), 0], kind="stable")[::-1]
        kept = best[row, 0][~np.isnan(best[row, 0, :, 0])]
        assert len(kept) == len(windows)
        np.testing.assert_allclose(kept[:, :2], segments[row, order], atol=1e-4)


def test_videos_without_windows_leave_the_count_or_are_wrong(folder, tmp_path):
    from data_prep.ctrl import prepare as preparation

    kept = tmp_path / "kept"
    kept.mkdir()
    for path in (folder / "features").glob("s0-*"):
        (kept / path.name).write_bytes(path.read_bytes())
    words = ["--features", kept, "--output", tmp_path / "windows", "--dim", ctrl_files.WIDTH, "--num_shards", 1]
    preparation.main(["windows", *map(str, words)])
    for counted, sentences in ((False, 12), (True, 11 * 12)):
        config = make_config(
            folder, windows=str(tmp_path / "windows"), split="train", count_videos_without_windows=counted
        )
        task = get_task(config)
        variables = task.init(jax.random.key(1), zeros(task))
        found = evaluate.run(task.evaluators["things"], variables, sharding.make_mesh(config.mesh), 16).metrics
        assert (found["sentences"], found["sentences_without_windows"]) == (sentences, 10 * 12)

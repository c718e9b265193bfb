"""Long-term feature banks as a task: from records to a bank and to detections, on any number of devices, resumed."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from keyframe_files import FPS, INTERVAL, JITTER, prepared
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError, DataError
from vlm_jax.systems.lfb import data
from vlm_jax.systems.lfb.bank import Bank, write_bank
from vlm_jax.task import get_task
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.loop import train
from vlm_jax.train.optimizer import path_name
from vlm_jax.types import DataShard

SMOKE = "configs/lfb_nl.py:smoke"
BANK = "bank_train"


@pytest.fixture(autouse=True)
def in_checkout(root, monkeypatch):
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a small data set of two videos."""
    return prepared(tmp_path_factory.mktemp("keyframes"))


def small(folder, operator="none", **changes):
    """Return a config of a small model on the data set, with the evaluators `val` and `bank_train`."""
    config = configs.load(SMOKE)
    with config.unlocked():
        config.data.synthetic, config.data.directory = False, str(folder)
        config.batch_size, config.batch_groups = 4, 2
        config.clips.update(fps=FPS, interval=INTERVAL, jitter=JITTER, short_side=(32, 40), size=32)
        config.clips.evaluation_short_side = 32
        config.model.operator = operator
        settings = {"directory": str(folder), "split": "train", "proposal_threshold": 0.85, "action_threshold": 0.0}
        settings |= {"mode": "reference", "write_bank": False}
        config.detection = ConfigDict({"val": settings, BANK: settings | {"write_bank": True}})
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (config[section] if section else config)[leaf] = value
    return config


def a_bank(folder, dim=32, source=None, videos=("a", "b")):
    """Write a bank of random features with several boxes a second, and return its folder."""
    rng = np.random.default_rng(0)
    names = [video for video in videos for _ in range(5)]
    counts = rng.integers(1, 5, len(names))
    features = rng.random((counts.sum(), dim)).astype(np.float16)
    write_bank(folder, names, [900 + number % 5 for number in range(len(names))], counts, features, source or {})
    return str(folder)


def variables_of(config):
    task = get_task(config)
    specs = next(iter(task.batch_specs.values()))
    batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    return jax.jit(task.init)(jax.random.key(0), batch)


def evaluated(config, name="val", folder=None, batch_size=2, variables=None):
    task, mesh = get_task(config), sharding.make_mesh(config.mesh)
    return evaluate.run(task.evaluators[name], variables or variables_of(config), mesh, batch_size, folder)


def test_it_learns_makes_a_bank_and_reads_it(folder, tmp_path, command):
    config = small(folder, steps=30, log_every=10)
    train(get_task(config), config, tmp_path / "baseline")
    out, error = command("evaluate", "--workdir", tmp_path / "baseline")
    assert not error
    results = tmp_path / "baseline" / "results"
    bank = Bank.open([results / BANK])
    assert (bank.dim, bank.dtype, sorted(bank.videos)) == (256, np.float16, ["a", "b"])
    assert bank.source["fingerprint"]
    assert bank.source["checkpoint"].endswith("baseline/checkpoints/00000030")
    lines = [json.loads(line) for line in (results / "val.jsonl").read_text().splitlines()]
    assert [(line["video"], line["second"]) for line in lines][:3] == [("a", 902), ("a", 903), ("a", 904)]
    stated = json.loads((results / "val.json").read_text())
    assert stated["protocol"]["mode"] == "reference"
    assert {"mAP", "mAP/person_movement", "keyframes", "boxes"} <= stated["metrics"].keys()

    second = small(folder, "non_local", steps=30, log_every=10, bank__folders=(str(results / BANK),))
    configs.describe(second)
    assert second.model.bank_dim == 256
    assert second.bank.source.fingerprint == bank.source["fingerprint"]
    train(get_task(second), second, tmp_path / "nl")
    logged = [json.loads(line) for line in (tmp_path / "nl" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    out, error = command("evaluate", "--workdir", tmp_path / "nl", "--evaluator", "val")
    assert "mAP" in out


@pytest.mark.parametrize("operator", ["none", "non_local"])
def test_batches_equal_keyframes_one_by_one(folder, tmp_path, operator):
    bank = a_bank(tmp_path / "bank")
    config = small(folder, operator, bank__folders=(bank,))
    variables = variables_of(config)
    alone, together = (evaluated(config, batch_size=size, variables=variables).outputs for size in (1, 3))
    np.testing.assert_array_equal(alone["counts"], together["counts"])
    np.testing.assert_allclose(alone["scores"], together["scores"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(alone["boxes"], together["boxes"])


def test_a_bank_s_rows_reach_the_scores_and_empty_slots_count(folder, tmp_path):
    variables = None
    for operator in ("max", "avg", "non_local"):
        config = small(folder, operator, bank__folders=(a_bank(tmp_path / "bank"),))
        variables = variables_of(config)
        found = evaluated(config, variables=variables).outputs["scores"]
        write_bank(tmp_path / "zeros", ["a", "b"], [1, 1], [1, 1], np.zeros((2, 32), np.float16), {})
        empty = small(folder, operator, bank__folders=(str(tmp_path / "zeros"),))
        assert np.abs(evaluated(empty, variables=variables).outputs["scores"] - found).max() > 1e-5


def test_random_slots_are_an_option_and_seeded(folder, tmp_path):
    config = small(folder, "avg", bank__folders=(a_bank(tmp_path / "bank"),), bank__random_in_evaluation=True)
    config.bank.per_second = 1
    variables = variables_of(config)
    first, again = (evaluated(config, variables=variables).outputs["scores"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    config.bank.random_in_evaluation = False
    assert np.abs(evaluated(config, variables=variables).outputs["scores"] - first).max() > 1e-6


def test_it_resumes_bit_for_bit(folder, tmp_path):
    bank = a_bank(tmp_path / "bank")

    def config(steps):
        return small(folder, "non_local", steps=steps, bank__folders=(bank,), checkpoint__every_steps=2)

    whole = train(get_task(config(4)), config(4), tmp_path / "whole")
    train(get_task(config(2)), config(2), tmp_path / "parts")
    resumed = train(get_task(config(4)), config(4), tmp_path / "parts")
    for part in ("params", "model_state", "opt_state"):
        same = jax.tree.map(np.array_equal, getattr(whole, part), getattr(resumed, part))
        assert all(jax.tree.leaves(same)), part


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]).reshape(count, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_devices_agree_in_float64(groups):
    config = configs.load(SMOKE)
    config.batch_groups = groups
    with jax.enable_x64(True):
        task = get_task(config)
        specs = next(iter(task.batch_specs.values()))
        batch = dict(next(iter(SyntheticPipeline(specs, DataShard(batch_size=4, seed=3)))))
        batch["boxes"] = np.sort(np.random.default_rng(0).random(batch["boxes"].shape) * 32, -1)[..., [0, 1, 2, 3]]
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables_of(config))
        # Batch norms that start at 0 hide the branches.
        variables = jax.tree.map(lambda x: x + 0.05 * np.random.default_rng(1).normal(size=x.shape), variables)
        params = variables.pop("params")
        step = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))

        def outcome(count):
            data = sharding.shard_batch(mesh_of(count), batch)
            (loss, aux), gradients = step(params, variables, data, jax.random.key(0))
            tree = {"loss": loss, "gradients": gradients, "state": aux.model_state, "reports": aux.metrics}
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {path_name(path): np.asarray(leaf.addressable_data(0)) for path, leaf in leaves}

        reference = outcome(1)
        assert reference["loss"] > 0
        for count in (2, 4):
            found = outcome(count)
            for name, value in reference.items():
                error = np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-12)
                assert error < 1e-6, f"{count} devices: {name} differs by {error:.1e}"


def test_groups_are_averaged_as_processes_are(folder):
    """Two groups of two clips give the mean of the losses and gradients of two batches of two, and of statistics."""
    config = configs.load("configs/lfb_baseline.py:smoke")
    config.model.dropout = 0.0
    specs = next(iter(get_task(config).batch_specs.values()))
    batch = next(iter(SyntheticPipeline(specs, DataShard(batch_size=4, seed=3))))
    batch = {**batch, "boxes": np.tile(np.float32([2, 2, 30, 30]), (4, 4, 1))}
    variables = dict(variables_of(config))
    params = variables.pop("params")

    def outcome(groups, rows):
        config.batch_groups = groups
        step = jax.jit(jax.value_and_grad(get_task(config).loss_fn, has_aux=True))
        part = {name: value[rows] for name, value in batch.items()}
        (loss, aux), gradients = step(params, variables, part, jax.random.key(0))
        return {"loss": loss, "gradients": gradients, "state": aux.model_state}

    together = outcome(2, slice(0, 4))
    config.batch_size = 2
    halves = [outcome(1, slice(0, 2)), outcome(1, slice(2, 4))]
    mean = jax.tree.map(lambda *parts: sum(parts) / 2, *halves)
    for name in ("loss", "state"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together[name], mean[name])
    head = "classifier"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        together["gradients"][head],
        mean["gradients"][head],
    )


BANK_SCRIPT = """
import os, runpy, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_default_matmul_precision", "highest")
sys.path[:0] = ["launch", "tests"]
from vlm_jax.train.sinks import ArraySink
write = ArraySink.write
def dying(self, number, index, outputs):
    write(self, number, index, outputs)
    if number == int(os.environ["DIES_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
ArraySink.write = dying
sys.argv = ["evaluate", *sys.argv[1:]]
runpy.run_path("launch/evaluate.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_bank_of_two_processes_killed_in_the_middle_equals_that_of_one(folder, tmp_path, root, command):
    config = small(folder, steps=2)
    train(get_task(config), config, tmp_path / "run")
    words = ["--workdir", tmp_path / "run", "--evaluator", BANK, "--config.evaluate.batch_size=2"]
    assert not command("evaluate", *words)[1]
    made = tmp_path / "run" / "results" / BANK
    expected = {name: (made / name).read_bytes() for name in ("features.npy", "counts.npy", "bank.json")}
    (made / "features.npy").unlink()

    def run(dies_at):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cluster = {"PYTHONPATH": str(root), "VLM_COORDINATOR": f"127.0.0.1:{port}", "VLM_NUM_PROCESSES": "2"}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", BANK_SCRIPT, *map(str, (*words, "--name", "two"))],
                cwd=root,
                env={**os.environ, **cluster, "VLM_PROCESS_ID": str(number), "DIES_AT": str(dies_at)},
            )
            for number in range(2)
        ]
        return [process.wait(300) for process in started]

    parts = tmp_path / "run" / "results" / "two" / f"{BANK}.parts"
    two = tmp_path / "run" / "results" / "two" / BANK
    # The one that is killed first may take the other with it.
    assert -signal.SIGKILL in run(0)
    assert list(parts.glob("*.npz"))
    assert not two.exists()
    assert run(-1) == [0, 0]
    for name, content in expected.items():
        assert (two / name).read_bytes() == content, name
    assert not parts.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bank__folders": ()}, "config.bank.folders: empty; the operator 'max' needs a bank"),
        ({"model__bank_dim": 48}, "has features of 32 numbers, config.model.bank_dim is 48"),
        ({"bank__source": ConfigDict({"fingerprint": "f00"})}, "was made by another model than the bank of training"),
    ],
)
def test_a_wrong_bank_is_one_line(folder, tmp_path, changes, message):
    bank = a_bank(tmp_path / "bank", source={"fingerprint": "abc"})
    config = small(folder, "max", bank__folders=(bank,))
    with config.unlocked():
        for key, value in changes.items():
            section, _, leaf = key.partition("__")
            config[section][leaf] = value
    with pytest.raises(ConfigError, match=message) as error:
        get_task(config).train_data(DataShard(batch_size=4))
    assert "\n" not in str(error.value)


def test_a_video_that_the_bank_lacks_is_named(folder, tmp_path):
    config = small(folder, "max", bank__folders=(a_bank(tmp_path / "bank", videos=("b", "c")),))
    with pytest.raises(DataError, match="no features of video 'a'"):
        get_task(config).train_data(DataShard(batch_size=4))


def test_box_buckets_must_hold_all_boxes(folder):
    with pytest.raises(ConfigError, match=r"config.data.box_buckets: \[4\], expected the last one to be at least"):
        get_task(small(folder, targets__max_boxes=8))


def test_training_needs_a_step_for_each_pair_of_buckets():
    config = configs.load("configs/lfb_nl.py")
    specs = get_task(config).batch_specs
    assert len(specs) == len(config.data.box_buckets) * len(config.data.bank_buckets)
    largest = specs["32-2400"]
    assert largest["slots"].shape == (96, 32, 300)
    assert largest["bank"].shape == (96, 2400, 2048)
    assert data.make_sampling(config).frame_shift == 1

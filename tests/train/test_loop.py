"""The training loop, on a system that the library does not know."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy

from vlm_jax.errors import ConfigError
from vlm_jax.train.checkpoint import CheckpointError, Checkpoints
from vlm_jax.train.loop import TrainingError, train


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}


def run(workdir, **overrides):
    config = toy.make_config(**overrides)
    return train(toy.make_task(config), config, workdir)


def same(a, b):
    a, b = (state.replace(key=jax.random.key_data(state.key)) for state in (a, b))
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


def test_a_sixth_system_learns_and_logs(tmp_path):
    state = run(tmp_path, steps=60, schedule__learning_rate=0.1)
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == list(range(1, 61))
    assert {"step", "loss", "learning_rate", "examples_per_second", "data_wait", "bias_norm"} <= logged[0].keys()
    assert all(0 <= line["data_wait"] <= 1 for line in logged)
    assert logged[-1]["loss"] < 0.05 * logged[0]["loss"]
    assert int(state.model_state["stats"]["seen"]) == 60 * 8
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 8


def test_the_rate_follows_the_batch_size_if_asked(tmp_path):
    run(tmp_path, steps=1, schedule__learning_rate=0.1, schedule__reference_batch_size=32)
    assert lines(tmp_path)[0]["learning_rate"] == pytest.approx(0.1 * 8 / 32)


def test_resuming_equals_never_having_stopped(tmp_path):
    whole = run(tmp_path / "whole", optimizer__ema_decay=0.9)
    run(tmp_path / "parts", optimizer__ema_decay=0.9, steps=3)
    resumed = run(tmp_path / "parts", optimizer__ema_decay=0.9, steps=6)
    assert same(whole, resumed)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_what_was_logged_beyond_the_checkpoint_is_dropped(tmp_path):
    run(tmp_path, steps=3)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    run(tmp_path, steps=6)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path)[4] < 99


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = toy.make_config(log_every=5, steps=20)
    with pytest.raises(TrainingError, match=r"step 5: the loss is nan"):
        train(toy.make_task(config, nan_at=4 * 8), config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints", config.checkpoint).latest_step() == 3


def test_sigterm_saves_and_the_same_command_resumes(tmp_path, capsys):
    # A step every hundredth of a second: the signal arrives in the middle.
    slow = toy.Batches.__iter__

    def delayed(self):
        for number, batch in enumerate(slow(self)):
            time.sleep(0.01)
            if number == 50:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    toy.Batches.__iter__ = delayed
    try:
        stopped = run(tmp_path / "parts", steps=2000, checkpoint__every_steps=5000, schedule__learning_rate=1e-3)
    finally:
        toy.Batches.__iter__ = slow
    step = int(stopped.step)
    assert 0 < step < 2000
    assert f"told to stop: saved step {step} of 2000" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    end = step + 5
    resumed = run(tmp_path / "parts", steps=end, schedule__learning_rate=1e-3)
    assert same(resumed, run(tmp_path / "whole", steps=end, schedule__learning_rate=1e-3))


def test_an_unknown_evaluation_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"config.evaluate.names: 'helt' is not one of held"):
        run(tmp_path, steps=8, evaluate__names=("helt",))
    assert not tmp_path.joinpath("metrics.jsonl").exists()


def test_best_checkpoint_outlives_the_latest(tmp_path):
    overrides = {
        "evaluate__names": ("held",),
        "evaluate__every_steps": 2,
        "checkpoint__keep": 1,
        "checkpoint__keep_best": 1,
        "checkpoint__best_metric": "held/error",
        "checkpoint__best_is_lowest": True,
    }
    run(tmp_path, steps=8, schedule__learning_rate=5.0, **overrides)
    errors = {line["step"]: line["held/error"] for line in lines(tmp_path) if "held/error" in line}
    assert sorted(errors) == [2, 4, 6, 8]
    best = min(errors, key=errors.get)
    kept = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == sorted({best, 8})
    with pytest.raises(CheckpointError, match=r"best_metric: 'held/accuracy' is not one of held/error"):
        run(tmp_path / "other", **overrides | {"checkpoint__best_metric": "held/accuracy"})


def test_keeps_the_newest_checkpoints(tmp_path):
    run(tmp_path, steps=12, checkpoint__every_steps=1, checkpoint__keep=10)
    assert sorted(int(f.name) for f in (tmp_path / "checkpoints").iterdir()) == list(range(3, 13))


def test_evaluation_does_not_depend_on_the_batch(tmp_path):
    results = set()
    for size in (1, 4, 8, 32):
        run(tmp_path / str(size), steps=2, evaluate__names=("held",), evaluate__batch_size=size)
        line = lines(tmp_path / str(size))[-1]
        assert line["held/items"] == 21
        results.add(round(line["held/error"], 5))
    assert len(results) == 1


def test_warm_start_and_the_average(tmp_path):
    source = run(tmp_path / "source")
    config = {"init_from": (str(tmp_path / "source"),), "steps": 1, "schedule__learning_rate": 0.0}
    late = run(tmp_path / "late", **config, optimizer__ema_decay=0.5, optimizer__ema_after_init_from=True)
    early = run(tmp_path / "early", **config, optimizer__ema_decay=0.5)
    kernel = np.asarray(source.params["kernel"])
    np.testing.assert_array_equal(late.params["kernel"], kernel)
    np.testing.assert_allclose(late.ema_params["kernel"], kernel, rtol=1e-6)
    fresh = toy.make_task(toy.make_config()).init(jax.random.split(jax.random.key(1))[0], None)["params"]["kernel"]
    np.testing.assert_allclose(early.ema_params["kernel"], 0.5 * np.asarray(fresh) + 0.5 * kernel, rtol=1e-5)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        run(tmp_path / "none", init_from=(str(tmp_path / "nowhere"),))


def test_epochs_become_steps(tmp_path):
    state = run(tmp_path, steps=0, epochs=2, checkpoint__every_steps=0, checkpoint__every_epochs=1)
    assert int(state.step) == 20
    assert sorted(int(f.name) for f in (tmp_path / "checkpoints").iterdir()) == [10, 20]
    assert lines(tmp_path)[-1]["epoch"] == 2.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 9}, "config.batch_size: 9 does not divide over 4 devices"),
        ({"batch_groups": 3, "batch_size": 12}, "config.batch_groups: 3 groups and 4 devices"),
        ({"mesh__data": 3}, "config.mesh: data x model = 3 x 1 does not fit 4 devices"),
        ({"schedule__name": "cosin"}, "config.schedule.name: 'cosin'"),
        ({"optimizer__name": "lamb"}, "config.optimizer.name: 'lamb'"),
        ({"optimizer__groups": (("nothing", 1.0, 0.0),)}, "'nothing' matches no parameter"),
    ],
)
def test_what_does_not_fit_is_said_before_training(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **overrides)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    run(tmp_path)
    (tmp_path / "config.json").unlink()  # which would tell it first
    with pytest.raises(CheckpointError, match=r"of another model or optimiser: has opt_state"):
        run(tmp_path, optimizer__name="sgd", optimizer__momentum=0.0)


def test_an_unwritable_workdir_is_one_line(root):
    """As a command, through a file where the folder should be (root may write anywhere)."""
    command = [sys.executable, "launch/train.py", "--config", "configs/milnce_howto100m.py:smoke"]
    done = subprocess.run(
        [*command, "--workdir", "setup.py/run"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": "."},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "setup.py/run" in done.stderr
    assert done.stderr.count("\n") == 1

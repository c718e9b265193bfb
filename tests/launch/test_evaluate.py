"""launch/evaluate.py on the toy system: a run is all that it needs, and no result is lost."""

import json
import shutil

import pytest
import toy

from vlm_jax.train.loop import train


@pytest.fixture(autouse=True)
def installed():
    with toy.installed():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps with checkpoints at 3 and 6; the earlier one is the better one."""
    names = {"evaluate__names": ("held",), "evaluate__every_steps": 3, "optimizer__ema_decay": 0.5}
    best = {"checkpoint__keep_best": 1, "checkpoint__best_metric": "held/error", "checkpoint__best_is_lowest": True}
    config = toy.make_config(schedule__learning_rate=5.0, **names, **best)
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(toy.make_task(config), config, folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """The run, moved to another place."""
    return shutil.copytree(trained, tmp_path / "moved")


def results(run, name=""):
    return json.loads((run / "results" / name / "held.json").read_text())


def test_a_run_is_all_that_is_needed(run, command):
    out, error = command("evaluate", "--workdir", run, "--config.evaluate.batch_size=4")
    assert not error
    assert "held (" in out
    found = results(run)
    assert found["metrics"]["items"] == 21
    assert found["protocol"] == {"task": "regression"}
    del found["metrics"], found["protocol"]
    assert found == {
        "checkpoint": "checkpoints/00000006",
        "step": 6,
        "chosen_by": "newest",
        "weights": "raw",
        "config": "the run's",
        "overrides": ["--config.evaluate.batch_size=4"],
    }


def test_another_evaluation_never_replaces_one_silently(run, command):
    assert not command("evaluate", "--workdir", run)[1]
    raw = results(run)
    for more, difference in {
        ("--average",): "weights is 'raw' there, now 'averaged'",
        ("--checkpoint", f"{run}@3"): "chosen_by is 'newest' there, now",
        ("--config.evaluate.batch_size=4",): "overrides is [] there, now ['--config.evaluate.batch_size=4']",
    }.items():
        _, error = command("evaluate", "--workdir", run, *more)
        assert "results/held.json: holds another evaluation: " in error
        assert difference in error
        assert "--name LABEL writes beside it, --overwrite replaces it" in error
        assert results(run) == raw
    assert not command("evaluate", "--workdir", run, "--average", "--name", "average")[1]
    assert results(run, "average")["weights"] == "averaged"
    assert results(run, "average")["metrics"]["error"] != raw["metrics"]["error"]
    out, error = command("evaluate", "--workdir", run, "--average", "--overwrite")
    assert not error
    assert "replaces the results of step 6" in out
    assert results(run)["weights"] == "averaged"


def test_a_newer_checkpoint_of_the_run_replaces_the_older_with_a_line(run, command):
    newest = run / "checkpoints" / "00000006"
    newest.rename(run / "aside")
    assert not command("evaluate", "--workdir", run)[1]
    assert results(run)["step"] == 3
    (run / "aside").rename(newest)
    out, error = command("evaluate", "--workdir", run)
    assert not error
    assert "held.json: replaces the results of step 3" in out
    assert results(run)["step"] == 6


def test_the_best_checkpoint_is_named(run, command):
    assert not command("evaluate", "--workdir", run, "--checkpoint", f"{run}@best")[1]
    found = results(run)
    assert (found["step"], found["checkpoint"], found["chosen_by"]) == (3, "checkpoints/00000003", f"{run}@best")


def test_what_cannot_be_evaluated_is_one_line(run, command, tmp_path):
    plain = toy.make_config()
    train(toy.make_task(plain), plain, tmp_path / "plain")
    for words, message in {
        ("--workdir", tmp_path / "plain", "--average"): "holds no running average of the parameters",
        ("--workdir", run, "--name", "a/b"): "--name: expected the name of a folder, found 'a/b'",
        ("--workdir", run, "--checkpoint", f"{run}@7"): "found no step '7', expected best or one of 3, 6",
        ("--workdir", run, "--config.evaluate.batchsize=4"): "the config has no key 'batchsize'",
    }.items():
        _, error = command("evaluate", *words)
        assert message in error
    assert not (tmp_path / "plain" / "results").exists()

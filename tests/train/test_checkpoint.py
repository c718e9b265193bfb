"""Runs that are killed, damaged, full or told to stop, on the toy system."""

import errno
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec

from vlm_jax.errors import ConfigError
from vlm_jax.train import checkpoint, checksums, step_folders
from vlm_jax.train.checkpoint import CheckpointError, DamagedError, checkpoint_folder
from vlm_jax.train.loop import train


def run(workdir, task=None, **overrides):
    config = toy.make_config(**overrides)
    return train(task or toy.make_task(config), config, workdir)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(workdir):
    return list(step_folders.step_folders(workdir / "checkpoints"))


def logged(workdir):
    def constant(name):
        raise ValueError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=constant) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps with checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(folder)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 2}, r"config.seed: 1 in the run, now 2"),
        ({"batch_size": 16}, r"config.batch_size: 8 in the run, now 16"),
        ({"model__inputs": 5}, r"config.model.inputs: 4 in the run, now 5"),
        ({"schedule__learning_rate": 0.1, "seed": 3}, r"learning_rate: 0.05 in the run, now 0.1; config.seed: 1"),
    ],
)
def test_another_config_is_rejected_and_the_run_stays_as_it_is(copy, overrides, message):
    before = contents(copy)
    with pytest.raises(ConfigError, match=message):
        run(copy, **overrides)
    assert contents(copy) == before


def test_what_may_change_is_listed(copy, capsys):
    run(copy, steps=8, log_every=2, checkpoint__keep=1)
    out = capsys.readouterr().out
    for line in ("config.checkpoint.keep: 10 in the run, now 1", "config.log_every: 1 in the run, now 2"):
        assert f"changed since the run was last started: {line}" in out
    assert json.loads((copy / "config.json").read_text())["steps"] == 8
    assert steps(copy) == [8]


def test_a_run_that_cannot_be_restored_stays_as_it_is(copy, monkeypatch):
    def restore(*_):
        raise CheckpointError("of another model")

    monkeypatch.setattr(checkpoint.Checkpoints, "restore", restore)
    before = contents(copy)
    with pytest.raises(CheckpointError, match="of another model"):
        run(copy, steps=8)
    assert contents(copy) == before


def test_what_a_killed_process_left_is_no_checkpoint(copy, capsys):
    newest = copy / "checkpoints" / "00000006"
    unfinished = newest.with_name("00000009.orbax-checkpoint-tmp")
    shutil.copytree(newest, unfinished)
    assert steps(copy) == [3, 6]
    assert checkpoint_folder(copy) == newest
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpoint_folder(unfinished)
    state = run(copy, steps=9)
    assert "resumed from step 6" in capsys.readouterr().out
    assert int(state.step) == 9
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["00000003", "00000006", "00000009"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def arrays_of(folder):
    return max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


DAMAGES = {
    "no _METADATA": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "has no state/manifest.ocdbt": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "has no state/_METADATA": lambda folder: shutil.rmtree(folder / "state"),
    "bytes, expected": lambda folder: cut(arrays_of(folder)),
    "data/metadata has other content": lambda folder: flip(folder / "data" / "metadata"),
    "other content than was written": lambda folder: flip(arrays_of(folder)),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(copy, capsys, message):
    newest = copy / "checkpoints" / "00000006"
    DAMAGES[message](newest)
    with pytest.raises(DamagedError, match=message.removeprefix("no ")):
        checkpoint.stored_shapes(newest)
    state = run(copy)
    said = [line for line in capsys.readouterr().out.splitlines() if ": damaged: " in line]
    assert len(said) == 1
    assert said[0].endswith("resuming from step 3 instead")
    assert int(state.step) == 6
    assert steps(copy) == [3, 6]
    assert newest.with_name("00000006.damaged").is_dir()
    assert [line["step"] for line in logged(copy)] == [1, 2, 3, 4, 5, 6]


def test_a_wrong_position_falls_back_too(copy, capsys):
    newest = copy / "checkpoints" / "00000006"
    data = json.loads((newest / "data" / "metadata").read_text())
    (newest / "data" / "metadata").write_text(json.dumps(data | {"position": -5}))
    step_folders.write_manifest(newest)
    run(copy)
    assert "its data position is -5, expected 48; resuming from step 3 instead" in capsys.readouterr().out


def test_values_that_changed_without_a_trace_are_noticed(copy, monkeypatch):
    """Tensorstore returns other numbers than were saved: readers and a resume see it."""
    newest = copy / "checkpoints" / "00000006"
    data = json.loads((newest / "data" / "metadata").read_text())
    name = "params/kernel"
    data["checksums"][name] = data["checksums"][name][:-1] + ("0" if data["checksums"][name][-1] != "0" else "1")
    (newest / "data" / "metadata").write_text(json.dumps(data))
    step_folders.write_manifest(newest)
    task = toy.make_task(toy.make_config())
    with pytest.raises(DamagedError, match=f"the checksum of params/kernel is .*; {copy}@3 names another checkpoint"):
        checkpoint.restore_variables(copy, task.abstract_variables())
    assert int(run(copy).step) == 6


def test_when_no_checkpoint_is_whole_it_is_one_line_and_nothing_is_touched(copy):
    for folder in step_folders.step_folders(copy / "checkpoints").values():
        cut(arrays_of(folder))
    before = contents(copy)
    with pytest.raises(CheckpointError, match="no other checkpoint of the run can be read"):
        run(copy)
    assert contents(copy) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "int8"])
def test_checksums_do_not_depend_on_the_place_of_an_array(dtype):
    values = np.random.default_rng(0).normal(size=(8, 6, 3)) * 50
    array = jnp.asarray(values > 0 if dtype == "bool" else values).astype(dtype)
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    spread = jax.device_put(array, NamedSharding(mesh, PartitionSpec("data", "model")))
    on_host = checksums._sum_on_host(np.asarray(array))
    for placed in (array, spread):
        assert tuple(map(int, checksums._sum_on_devices(placed))) == on_host
    changed = np.asarray(array).copy()
    changed.view(np.uint8).reshape(-1)[7] ^= 1
    assert checksums._sum_on_host(changed)[0] != on_host[0]
    swapped = np.asarray(array)[::-1].copy()
    assert checksums._sum_on_host(swapped)[0] != on_host[0]


def test_checksums_count_what_is_not_finite():
    tree = {"a": jnp.ones(5), "b": jnp.array([1.0, jnp.nan, jnp.inf]), "c": jnp.arange(3)}
    assert checksums.checksums(tree)[1] == ["b"]
    assert int(checksums._sum_on_devices(tree["b"])[1]) == 2


def test_an_update_that_is_not_finite_is_never_saved(tmp_path):
    """The rate is infinite at step 4: the loss that would tell comes one step later, after the checkpoint."""
    schedule = {"schedule__name": "multistep", "schedule__boundary_steps": [3], "schedule__decay_factor": float("inf")}
    with pytest.raises(CheckpointError, match=r"step 4: .* is not finite after this update; not saved"):
        run(tmp_path, steps=4, checkpoint__every_steps=2, **schedule)
    assert steps(tmp_path) == [2]


def test_metrics_are_valid_json(tmp_path):
    config = toy.make_config(steps=2, evaluate__names=("held",))
    task = toy.make_task(config)
    held = task.evaluators["held"]
    values = {"error": float("nan"), "ratio": float("inf")}
    object.__setattr__(held, "summarize", lambda outputs: values)
    train(task, config, tmp_path)
    assert logged(tmp_path)[-1] == {"step": 2, "held/error": None, "held/ratio": None}
    assert step_folders.read_metrics(tmp_path / "checkpoints" / "00000002") == {"held/error": None, "held/ratio": None}


@pytest.mark.parametrize("ending", ['{"step": 6, "lo', '{"step": 6, "loss": 1.0}', "\x00\x00\n", "[]\n"])
def test_a_cut_last_line_is_repaired(copy, ending):
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]) + ending)
    run(copy, steps=8)
    assert {line["step"] for line in logged(copy)} >= {1, 2, 3, 4, 5, 7, 8}


EVALUATED = {"evaluate__names": ("held",), "evaluate__every_steps": 2, "checkpoint__every_steps": 5000}


def stopping_in_evaluation(number, at=1):
    """A task that gets a signal in its evaluation number `at`."""
    task = toy.make_task(toy.make_config())
    held, calls = task.evaluators["held"], []
    summarize = held.summarize

    def signalled(outputs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return summarize(outputs)

    object.__setattr__(held, "summarize", signalled)
    return task, calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_an_evaluation_stops_and_the_evaluation_is_made_up_for(tmp_path, capsys, number):
    task, calls = stopping_in_evaluation(number, at=2)
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, task, steps=8, **EVALUATED)
    else:
        run(tmp_path, task, steps=8, **EVALUATED)
    assert "told to stop: saved step 4 of 8" in capsys.readouterr().out
    assert len(calls) == 2
    assert steps(tmp_path) == [2, 4]
    assert [line["step"] for line in logged(tmp_path) if "held/error" in line] == [2]
    run(tmp_path, steps=8, **EVALUATED)
    assert [line["step"] for line in logged(tmp_path) if "held/error" in line] == [2, 4, 6, 8]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_evaluation_at_the_start_is_made_up_for_once(tmp_path):
    task, calls = stopping_in_evaluation(signal.SIGTERM)
    run(tmp_path, task, steps=2, evaluate__at_start=True, **EVALUATED)
    assert (len(calls), steps(tmp_path)) == (1, [0])
    run(tmp_path, steps=2, evaluate__at_start=True, **EVALUATED)
    assert [line["step"] for line in logged(tmp_path) if "held/error" in line] == [0, 2]


def test_the_last_evaluation_is_made_up_for_too(tmp_path):
    task, _ = stopping_in_evaluation(signal.SIGTERM)
    run(tmp_path, task, steps=2, **EVALUATED)
    assert steps(tmp_path) == [2]
    run(tmp_path, steps=2, **EVALUATED)
    assert [line["step"] for line in logged(tmp_path) if "held/error" in line] == [2]
    before = contents(tmp_path)
    run(tmp_path, steps=2, **EVALUATED)
    assert contents(tmp_path).keys() - before.keys() == set()
    assert [line["step"] for line in logged(tmp_path) if "held/error" in line] == [2]


def test_a_signal_while_waiting_for_data_saves_at_once(tmp_path, monkeypatch, capsys):
    """Data that never come again."""
    batches = toy.Batches.__iter__

    def stalling(self):
        for number, batch in enumerate(batches(self)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            yield batch

    monkeypatch.setattr(toy.Batches, "__iter__", stalling)
    state = run(tmp_path, steps=1000, checkpoint__every_steps=5000)
    assert f"told to stop: saved step {int(state.step)} of 1000" in capsys.readouterr().out
    assert steps(tmp_path) == [int(state.step)]


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: Failed writing: 9 bytes to file 7: No space [os_error_code='28']\nmore"),
)


@pytest.mark.parametrize("problem", FULL, ids=("python", "tensorstore"))
def test_a_full_disk_is_one_line_and_the_run_resumes(copy, monkeypatch, problem):
    written = checkpoint.ocp.AsyncCheckpointer.wait_until_finished

    def full(self):
        written(self)
        raise problem

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp.AsyncCheckpointer, "wait_until_finished", full)  # save calls it, too
        with pytest.raises(CheckpointError, match=r"00000009: cannot be written: No space left on device$"):
            run(copy, steps=9)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert int(run(copy, steps=9).step) == 9
    assert steps(copy) == [3, 6, 9]


def test_a_disk_without_room_is_noticed_before_anything_is_written(copy, monkeypatch):
    before = contents(copy / "checkpoints")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
        with pytest.raises(CheckpointError, match=r"No space left on device: it may take .* MB, and 0.0 MB are free"):
            run(copy, steps=9)
    assert contents(copy / "checkpoints") == before
    assert int(run(copy, steps=9).step) == 9


def test_the_best_and_any_step_have_a_name(tmp_path):
    overrides = {"evaluate__names": ("held",), "evaluate__every_steps": 2, "checkpoint__keep": 2}
    best = {"checkpoint__keep_best": 1, "checkpoint__best_metric": "held/error", "checkpoint__best_is_lowest": True}
    run(tmp_path, steps=8, schedule__learning_rate=5.0, **overrides, **best)
    folders = step_folders.step_folders(tmp_path / "checkpoints")
    errors = {step: step_folders.read_metrics(folder)["held/error"] for step, folder in folders.items()}
    lowest = min(errors, key=errors.get)
    assert checkpoint_folder(f"{tmp_path}@best") == folders[lowest]
    assert checkpoint_folder(f"{tmp_path / 'checkpoints'}@6") == folders[6]
    assert checkpoint_folder(tmp_path) == folders[8]
    with pytest.raises(CheckpointError, match=r"found no step '5', expected best or one of .*6, 8"):
        checkpoint_folder(f"{tmp_path}@5")
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpoint_folder(f"{tmp_path}-other@best")


def test_a_run_starts_from_a_named_step(trained, tmp_path):
    state = run(tmp_path / "run", init_from=(f"{trained}@3",), steps=1, schedule__learning_rate=0.0)
    task = toy.make_task(toy.make_config())
    wanted = checkpoint.restore_variables(f"{trained}@3", task.abstract_variables())
    np.testing.assert_array_equal(state.params["kernel"], wanted["params"]["kernel"])


def test_without_a_metric_there_is_no_best(trained):
    with pytest.raises(CheckpointError, match=r"best_metric names no metric"):
        checkpoint_folder(f"{trained}@best")

"""launch/slurm.sh as SLURM runs it: a copy of the file, with SLURM's variables, and an `srun` of our own."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from data_prep.milnce import prepare as milnce

SIZES = "--short_side 80 --smallest_side 64 --segment_seconds 3 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6"

SRUN = """#!/usr/bin/env bash
# As srun does on one node: every task with its number; the first that fails ends it.
echo "$@" > "$SRUN_LOG"
while [[ "$1" == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 "$@" &
done
status=0
for ((task = 0; task < SLURM_NTASKS; task++)); do wait -n || status=$?; done
exit $status
"""


@pytest.fixture
def script(root, tmp_path):
    """SLURM runs a copy that lies elsewhere."""
    return shutil.copy(root / "launch" / "slurm.sh", tmp_path / "slurm_script")


def slurm(script, root, *words, **variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "VLM_"))}
    environment = {**inherited, "SLURM_SUBMIT_DIR": str(root), "PYTHON": sys.executable, **variables}
    command = ["bash", str(script), *map(str, words)]
    return subprocess.run(command, env=environment, cwd="/", text=True, capture_output=True, timeout=300)


def prepare(root, output):
    clips = root / "data_prep" / "clips"
    inputs = ["--list", clips / "videos.csv", "--videos", clips, "--captions", clips / "captions", "--output", output]
    return ["howto100m", *inputs, *SIZES.split(), "--num_shards", "5"]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_an_array_makes_what_workers_make(script, root, tmp_path):
    """Byte for byte: two tasks of every second shard, then the metadata."""
    milnce.main([*map(str, prepare(root, tmp_path / "workers")), "--workers", "2"])
    words = [*prepare(root, tmp_path / "array"), "--shard_step", 2]
    done = slurm(script, root, "prepare", *words, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0, done.stderr
    done = slurm(script, root, "finalize", *words)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line == f"error: {tmp_path / 'array'}: 3 of the 5 shards of howto100m-train are not made yet: 0,2,4"
    assert slurm(script, root, "prepare", *words, SLURM_ARRAY_TASK_ID="0").returncode == 0
    assert slurm(script, root, "finalize", *words).returncode == 0
    assert contents(tmp_path / "array") == contents(tmp_path / "workers")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "howto100m"], "error: prepare: no SLURM_ARRAY_TASK_ID; submit with sbatch --array=0-N"),
        ([], "error: expected train, prepare or finalize, found ''; the head of launch/slurm.sh shows how"),
        (["trian"], "error: expected train, prepare or finalize, found 'trian'; the head of launch/slurm.sh shows how"),
    ],
)
def test_wrong_words_are_one_line(script, root, words, message):
    done = slurm(script, root, *words)
    assert done.returncode == 1
    assert done.stderr.strip() == message


def free_job_number():
    """A job whose port, which jax works out from its number, is free."""
    for number in range(100, 4196):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 61440 + number % 4096)):
                return number
    raise AssertionError("no free port")


@pytest.mark.slow
def test_two_tasks_train_as_one(script, root, tmp_path):
    """The processes find each other by SLURM's variables alone; the losses are those of one process."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    words = ["--config", "configs/milnce_howto100m.py:smoke", "--config.data.streams=2", "--config.steps=3"]
    words += ["--config.model.blocks=('3b',)", "--config.clips.num_frames=4"]
    found = {}
    for tasks in (1, 2):
        done = slurm(
            script,
            root,
            "train",
            *words,
            "--workdir",
            tmp_path / str(tasks),
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            SRUN_LOG=str(tmp_path / "srun.log"),
            SLURM_JOB_ID=str(free_job_number()),
            SLURM_NTASKS=str(tasks),
            SLURM_CPUS_PER_TASK="3",
        )
        assert done.returncode == 0, done.stderr
        assert f", {tasks} process(es)" in done.stdout
        lines = (tmp_path / str(tasks) / "metrics.jsonl").read_text().splitlines()
        found[tasks] = [json.loads(line) for line in lines]
    assert (tmp_path / "srun.log").read_text().startswith("--kill-on-bad-exit=1 --cpus-per-task=3 ")
    assert [line["step"] for line in found[2]] == [1, 2, 3]
    losses = [[line["loss"] for line in found[tasks]] for tasks in (1, 2)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    config = json.loads((tmp_path / "2" / "config.json").read_text())
    assert config["batch_size"] == 4

"""Runs of several processes, one of which ends."""

import os
import signal
import socket
import subprocess
import sys

import jax
import pytest
import toy

from vlm_jax.train import loop, sharding
from vlm_jax.train.sharding import DeviceMemoryError, LostProcessError

SCRIPT = """
import os, signal, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
import _cli
import toy
from pathlib import Path
from vlm_jax.train import partners, sharding
from vlm_jax.train.loop import train

partners.INTERVAL, partners.PATIENCE = 0.2, 5

def main():
    sharding.initialize()
    batches = toy.Batches.__iter__
    def dying(self):
        for number, batch in enumerate(batches(self)):
            if number == 30 and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
    toy.Batches.__iter__ = dying
    config = toy.make_config(steps=4000, checkpoint__every_steps=10)
    train(toy.make_task(config), config, Path(sys.argv[1]))

_cli.run(main)
"""


@pytest.mark.slow
def test_when_a_partner_is_killed_the_others_end_with_one_line(root, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join(str(root / part) for part in ("", "tests", "launch"))
    cluster = {"PYTHONPATH": paths, "VLM_COORDINATOR": f"127.0.0.1:{port}", "VLM_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "run")],
            env={**os.environ, **cluster, "VLM_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    _, said = processes[0].communicate(timeout=60)
    assert processes[1].wait(10) == -signal.SIGKILL
    assert processes[0].returncode == 1
    # As the collective in which it waits ends with an error, or does not end.
    told = ("error: another process of this run has ended", "error: process 1 of this run has given no sign of life")
    errors = [line for line in said.splitlines() if any(text in line for text in told)]
    assert len(errors) == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection reset by peer\nmore", LostProcessError, "another process"),
        (
            "RESOURCE_EXHAUSTED: Out of memory.\nmore",
            DeviceMemoryError,
            "the device's memory is full",
        ),
        ("INTERNAL: something else", jax.errors.JaxRuntimeError, "something else"),
    ],
)
def test_what_a_person_can_mend_is_one_line(tmp_path, monkeypatch, text, kind, message):
    def compile_step(setup, batch):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(loop, "compile_step", compile_step)
    monkeypatch.setattr(sharding.jax.distributed, "is_initialized", lambda: True)
    config = toy.make_config()
    with pytest.raises(kind, match=message) as error:
        loop.train(toy.make_task(config), config, tmp_path)
    assert "\n" not in str(error.value)

"""The same step on 1, 2 and 4 devices, and on 2 processes with 2 devices each.

Deep batch-norm networks amplify rounding, so runs are not compared: single steps are, from the same states.
"""

import functools
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from vlm_jax import config as configs
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.task import get_task
from vlm_jax.train import sharding
from vlm_jax.train.optimizer import path_name
from vlm_jax.train.setup import prepare
from vlm_jax.types import DataShard


def config(groups):
    made = configs.load("configs/milnce_howto100m.py:smoke")
    made.batch_groups = groups
    made.schedule.warmup_steps = 0
    made.clips.size = 64
    made.model.blocks = ("4b",)
    return made


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]).reshape(count, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def batch(step):
    specs = get_task(config(1)).batch_specs[""]
    pipeline = SyntheticPipeline(specs, DataShard(batch_size=4, seed=5))
    pipeline.restore(4 * step)
    return next(iter(pipeline))


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@functools.lru_cache
def states(dtype):
    """Variables at three places along a run, made on one device."""
    made, mesh = config(2), mesh_of(1)
    task = get_task(made)
    setup = prepare(task, made, mesh, total_steps=12, steps_per_epoch=1)
    state = setup.create(jax.random.key(0))
    step = jax.jit(setup.step)
    found = {}
    for number in range(7):
        if number in (0, 3, 6):
            variables = cast(jax.device_get((state.params, state.model_state)), dtype)
            found[number] = variables
        state, metrics = step(state, batch(number))
        assert metrics["learning_rate"] > 0
    return found


@functools.lru_cache
def gradient_function(groups):
    return jax.jit(jax.value_and_grad(get_task(config(groups)).loss_fn, has_aux=True))


def outcome(groups, mesh, variables, number):
    """Loss, gradients and new model state of one step, by name."""
    params, model_state = variables
    local = batch(number)
    share = slice(jax.process_index() * 4 // jax.process_count(), (jax.process_index() + 1) * 4 // jax.process_count())
    data = sharding.shard_batch(mesh, {name: value[share] for name, value in local.items()})
    (loss, aux), gradients = gradient_function(groups)(params, model_state, data, jax.random.key(0))
    tree = {"loss": loss, "gradient": gradients, "state": aux.model_state["batch_stats"]}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(leaf.addressable_data(0)) for path, leaf in leaves}


def worst(ours, reference):
    errors = {}
    for name, value in reference.items():
        scale = max(np.abs(value).max(), 1e-300)
        errors[name] = float(np.abs(ours[name] - value).max() / scale)
    return max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_devices_agree_in_float64(groups):
    with jax.enable_x64(True):
        for number, variables in states(np.float64).items():
            reference = outcome(groups, mesh_of(1), variables, number)
            for count in (2, 4):
                name, error = worst(outcome(groups, mesh_of(count), variables, number), reference)
                assert error < 1e-6, f"{count} devices, state {number}: {name} differs by {error:.1e}"


@pytest.mark.slow
def test_losses_agree_in_float32():
    for number, variables in states(np.float32).items():
        reference = outcome(2, mesh_of(1), variables, number)["loss"]
        for count in (2, 4):
            np.testing.assert_allclose(outcome(2, mesh_of(count), variables, number)["loss"], reference, rtol=1e-5)


def main(folder):
    """One of two processes: the same outcomes on the mesh of all four devices, written by process 0."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_enable_x64", True)
    sharding.initialize()
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    mesh = sharding.make_mesh(config(2).mesh)
    for number in (0, 3, 6):
        arrays = dict(np.load(f"{folder}/state{number}.npz"))
        task = get_task(config(2))
        shapes = task.abstract_variables()
        params = shapes.pop("params")
        paths, structure = jax.tree_util.tree_flatten_with_path((params, shapes))
        variables = jax.tree.unflatten(structure, [arrays[path_name(path)] for path, _ in paths])
        ours = outcome(2, mesh, variables, number)
        if jax.process_index() == 0:
            np.savez(f"{folder}/ours{number}.npz", **ours)


def test_two_processes_agree_in_float64(tmp_path, root):
    with jax.enable_x64(True):
        made = states(np.float64)
        for number, variables in made.items():
            leaves = jax.tree_util.tree_leaves_with_path(variables)
            np.savez(tmp_path / f"state{number}.npz", **{path_name(path): leaf for path, leaf in leaves})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": str(root),
            "VLM_COORDINATOR": f"127.0.0.1:{port}",
            "VLM_NUM_PROCESSES": "2",
        }
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(tmp_path)], cwd=root, env={**environment, "VLM_PROCESS_ID": str(number)}
            )
            for number in range(2)
        ]
        assert [process.wait(300) for process in processes] == [0, 0]
        for number, variables in made.items():
            reference = outcome(2, mesh_of(1), variables, number)
            name, error = worst(dict(np.load(tmp_path / f"ours{number}.npz")), reference)
            assert error < 1e-6, f"state {number}: {name} differs by {error:.1e}"


if __name__ == "__main__":
    main(sys.argv[1])

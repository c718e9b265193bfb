"""Time a training step, an encoder or the input: python launch/benchmark.py --config FILE[:VARIANT] --steps N [--json]

The step and `--encoder NAME` run on one synthetic batch that stays on the device, so they need no data. Encoders are
those of the system's task, such as `video` of milnce and `moments` of groundnlq. `--input` reads batches and trains
nothing; its `examples_per_core_second` divides by the CPU time of the whole process, on however many cores it ran.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import _cli
import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.task import Task, get_task
from vlm_jax.train import hardware, sharding
from vlm_jax.train.setup import abstract_batch, compile_lowered, compile_step, prepare
from vlm_jax.types import Batch, DataShard


def main() -> None:
    """Run the command."""
    parser = _cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps to time, after two that are not counted")
    timed = parser.add_mutually_exclusive_group()
    timed.add_argument("--input", action="store_true", help="time the input pipeline instead of the step")
    timed.add_argument("--encoder", help="time this encoder of the task instead of the step")
    parser.add_argument("--bucket", help="bucket of the task (default: the first)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments, config = _cli.parse(parser)
    if arguments.input:
        configs.describe(config)
    sharding.initialize()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if arguments.input:
        figures = time_input(config, arguments.steps)
    elif arguments.encoder:
        figures = time_encoder(config, arguments.steps, arguments.bucket, arguments.encoder)
    else:
        figures = time_step(config, arguments.steps, arguments.bucket)
    if jax.process_index():
        return
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<22} {value:.6g}" if isinstance(value, float) else f"{name:<22} {value}")


def time_step(config: ConfigDict, steps: int, bucket: str | None) -> Mapping[str, object]:
    """Compile the training step and time it on one batch that stays on the device.

    Raises:
      ConfigError: for a bucket that the task does not have.
    """
    task = get_task(config)
    bucket = find_bucket(task, bucket)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, config)
    setup = prepare(task, config, mesh, total_steps=config.steps or 1000, steps_per_epoch=100)
    began = time.monotonic()
    compiled = compile_step(setup, abstract_batch(task, mesh, bucket))
    compile_seconds = time.monotonic() - began
    state = setup.create(jax.random.key(config.seed))
    batch = synthetic_batch(task, config, mesh, bucket)

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return state, metrics

    return describe(config, time_calls(step, steps), compiled, compile_seconds)


def time_encoder(config: ConfigDict, steps: int, bucket: str | None, name: str) -> Mapping[str, object]:
    """Compile one of the task's encoders and time it on one batch that stays on the device.

    Raises:
      ConfigError: for a bucket or an encoder that the task does not have.
    """
    task = get_task(config)
    bucket = find_bucket(task, bucket)
    if name not in task.encoders:
        raise ConfigError(f"--encoder: {name!r} is not one of {', '.join(task.encoders)}")
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, config)
    batch = synthetic_batch(task, config, mesh, bucket)
    variables = jax.jit(task.init)(jax.random.key(config.seed), batch)
    began = time.monotonic()
    compiled = compile_lowered(jax.jit(task.encoders[name]).lower(variables, batch))
    compile_seconds = time.monotonic() - began
    return describe(config, time_calls(lambda: compiled(variables, batch), steps), compiled, compile_seconds)


def find_bucket(task: Task, bucket: str | None) -> str:
    """Return the given name of `Task.batch_specs`, or the first one if it is None.

    Raises:
      ConfigError: for a name that the task does not have.
    """
    bucket = next(iter(task.batch_specs)) if bucket is None else bucket
    if bucket not in task.batch_specs:
        raise ConfigError(f"--bucket: {bucket!r} is not one of {', '.join(task.batch_specs)}")
    return bucket


def synthetic_batch(task: Task, config: ConfigDict, mesh: jax.sharding.Mesh, bucket: str) -> Batch:
    """Return a synthetic global batch, placed on the devices."""
    shard = DataShard(jax.process_index(), jax.process_count(), config.batch_size, config.seed)
    return sharding.shard_batch(mesh, next(iter(SyntheticPipeline(task.batch_specs[bucket], shard))))


def time_calls(call: Callable[[], Any], steps: int) -> list[float]:
    """Return the seconds of `steps` calls, made after two calls that are not counted."""
    seconds = []
    for _ in range(steps + 2):
        began = time.monotonic()
        jax.block_until_ready(call())
        seconds.append(time.monotonic() - began)
    return seconds[2:]


def describe(
    config: ConfigDict, seconds: list[float], compiled: jax.stages.Compiled, compile_seconds: float
) -> Mapping[str, object]:
    """Return the figures of a compiled function: times in seconds, memory in bytes, FLOP per step."""
    median = statistics.median(seconds)
    flops, peak = hardware.step_flops(compiled), hardware.peak_flops()
    figures: dict[str, object] = {
        "seconds_per_step": median,
        "seconds_per_step_min": min(seconds),
        "examples_per_second": config.batch_size / median,
        "compile_seconds": compile_seconds,
        "peak_memory": hardware.peak_memory(compiled),
        "flops_per_step": flops,
    }
    if peak:
        figures["mfu"] = flops / median / peak
    return figures | {"batch_size": config.batch_size, "device": describe_devices(), "steps": len(seconds)}


def time_input(config: ConfigDict, steps: int) -> Mapping[str, object]:
    """Measure reading and decoding of batches on the host, after two batches that are not counted."""
    shard = DataShard(jax.process_index(), jax.process_count(), config.batch_size, config.seed)
    pipeline = get_task(config).train_data(shard)
    batches = iter(pipeline)
    for _ in range(2):
        next(batches)
    began, used = time.monotonic(), time.process_time()
    for _ in range(steps):
        next(batches)
    seconds, used = time.monotonic() - began, time.process_time() - used
    figures: dict[str, object] = {
        "seconds_per_batch": seconds / steps,
        "examples_per_second": config.batch_size * steps / seconds,
        "examples_per_core_second": shard.local_batch_size * steps / used,
        "cores_used": used / seconds,
    }
    examples = getattr(pipeline, "examples", None)
    disk = examples.bytes_per_hour() if hasattr(examples, "bytes_per_hour") else None
    if disk:
        figures["gigabytes_per_hour_of_video"] = disk / 1e9
    return figures | {"batch_size": config.batch_size, "steps": steps}


def describe_devices() -> str:
    """Return number and kind of the devices, such as '4 x NVIDIA H200'."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


if __name__ == "__main__":
    _cli.run(main)

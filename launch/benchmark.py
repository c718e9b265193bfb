"""Times a training step or the input pipeline: python launch/benchmark.py --config FILE[:VARIANT] --steps N [--json]

The step runs on made-up batches that stay on the device, so no data is needed; `--input` reads batches and trains
nothing.
"""

import json
import statistics
import time
from collections.abc import Mapping

import _cli
import jax
from ml_collections import ConfigDict

from vlm_jax.tasks.made_data import MadePipeline
from vlm_jax.tasks.task import get_task
from vlm_jax.train import hardware, sharding
from vlm_jax.train.setup import abstract_batch, compile_step, prepare
from vlm_jax.types import DataShard


def main() -> None:
    """Runs the command."""
    parser = _cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps to time, after two that are not counted")
    parser.add_argument("--input", action="store_true", help="the input pipeline instead of the step")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    arguments, config = _cli.parse(parser)
    sharding.initialize()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    figures = (time_input if arguments.input else time_step)(config, arguments.steps)
    if jax.process_index():
        return
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<22} {value:.6g}" if isinstance(value, float) else f"{name:<22} {value}")


def time_step(config: ConfigDict, steps: int) -> Mapping[str, object]:
    """Compiles and times the training step on one resident batch."""
    task = get_task(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, config)
    setup = prepare(task, config, mesh, total_steps=config.steps or 1000, steps_per_epoch=100)
    began = time.monotonic()
    compiled = compile_step(setup, abstract_batch(task, mesh))
    compile_seconds = time.monotonic() - began
    state = setup.create(jax.random.key(config.seed))
    shard = DataShard(jax.process_index(), jax.process_count(), config.batch_size, config.seed)
    (specs,) = task.batch_specs.values()
    batch = sharding.shard_batch(mesh, next(iter(MadePipeline(specs, shard))))
    seconds = []
    for number in range(steps + 2):
        began = time.monotonic()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        if number >= 2:
            seconds.append(time.monotonic() - began)
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
    return figures | {"batch_size": config.batch_size, "device": describe_devices(), "steps": steps}


def time_input(config: ConfigDict, steps: int) -> Mapping[str, object]:
    """Times reading and decoding batches on the host."""
    shard = DataShard(jax.process_index(), jax.process_count(), config.batch_size, config.seed)
    batches = iter(get_task(config).train_data(shard))
    for _ in range(2):
        next(batches)
    seconds = []
    for _ in range(steps):
        began = time.monotonic()
        next(batches)
        seconds.append(time.monotonic() - began)
    mean = statistics.fmean(seconds)
    return {
        "seconds_per_batch": mean,
        "examples_per_second": config.batch_size / mean,
        "batch_size": config.batch_size,
        "steps": steps,
    }


def describe_devices() -> str:
    """Such as '4 x NVIDIA H200'."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


if __name__ == "__main__":
    _cli.run(main)

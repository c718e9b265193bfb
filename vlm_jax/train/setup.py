"""Preparation of a run: shapes and shardings of the state, and the compiled step."""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered
from ml_collections import ConfigDict

from vlm_jax.task import Task
from vlm_jax.train import sharding
from vlm_jax.train.optimizer import make_optimizer
from vlm_jax.train.schedule import make_schedule
from vlm_jax.train.state import TrainState, create_state
from vlm_jax.train.step import TrainStep, make_train_step
from vlm_jax.types import PyTree

CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        ("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "LIBRARY_FUSION_TYPE_REDUCE"),
    )
}
"""XLA options for CPUs.

The library that XLA prefers on a CPU runs convolutions on one thread. These options restrict it to matrix products and
reductions, so that all threads take part in convolutions.
"""


@dataclasses.dataclass(frozen=True)
class Setup:
    """Description of a run's state before anything is allocated, and its training step.

    Attributes:
      abstract: Shapes, types and shardings of the state.
      places: Shardings of the state alone.
      create: Function that makes the sharded state from a random key.
      step: Training step, not compiled.
    """

    abstract: TrainState
    places: PyTree
    create: Callable[[jax.Array], TrainState]
    step: TrainStep


def prepare(task: Task, config: ConfigDict, mesh: Mesh, *, total_steps: int, steps_per_epoch: int) -> Setup:
    """Build optimiser, schedule and step, and compute the shardings of the state.

    Raises:
      ConfigError: if the optimiser or the schedule cannot be built.
    """
    schedule = make_schedule(config.schedule, total_steps, steps_per_epoch, config.batch_size)
    optimizer = make_optimizer(config.optimizer, schedule, task.abstract_variables()["params"])
    specs = next(iter(task.batch_specs.values()))

    def create(key: jax.Array, batch: PyTree) -> TrainState:
        init_key, run_key = jax.random.split(key)
        return create_state(task.init(init_key, batch), optimizer, run_key, bool(config.optimizer.ema_decay))

    shapes = jax.eval_shape(create, jax.random.key(0), specs)
    places = sharding.shardings(mesh, task.partition_rules, shapes)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    step = make_train_step(
        task,
        optimizer,
        schedule,
        clip_norm=config.optimizer.clip_norm,
        ema_decay=config.optimizer.ema_decay,
    )

    def create_placed(key: jax.Array) -> TrainState:
        # Initialisers look at shapes only, so the compiler drops the forward pass and the zeros.
        zeros = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
        return jax.jit(create, out_shardings=places)(key, zeros)

    return Setup(abstract, places, create_placed, step)


def abstract_batch(task: Task, mesh: Mesh, bucket: str) -> PyTree:
    """Return shapes, types and shardings of the global training batch of a length bucket."""
    specs = task.batch_specs[bucket]
    place = sharding.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=place) for name, spec in specs.items()}


def compile_step(setup: Setup, batch: PyTree) -> Compiled:
    """Compile the training step for the shapes of a batch, given as arrays or specs; the state is donated."""
    step = jax.jit(setup.step, donate_argnums=0, out_shardings=(setup.places, None))
    return compile_lowered(step.lower(setup.abstract, batch))


def compile_lowered(lowered: Lowered) -> Compiled:
    """Compile with the options that suit the device."""
    if jax.default_backend() == "cpu":
        # A version of XLA without the experimental option does not need it.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(CPU_OPTIONS)
    return lowered.compile()

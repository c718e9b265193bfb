"""What the training and evaluation loops know of a system."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, PyTree, Sink, Variables

PartitionRules = Sequence[tuple[str, jax.sharding.PartitionSpec]]
"""(regular expression on 'a/b/kernel', how it is sharded); the first match wins, no match replicates."""


class Aux(NamedTuple):
    """What a loss gives beside its value.

    Attributes:
      metrics: Scalars, averaged over the logging window.
      model_state: The new model state.
    """

    metrics: dict[str, jax.Array]
    model_state: PyTree


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One protocol on one data set.

    Attributes:
      data: Finite pipeline of padded batches with `mask` [B] and `index` [B], equally many on every process; its
        `epoch_examples` is the number of items, and each of these comes once.
      predict_fn: Function from a batch to its outputs, batch axis first; jitted by the loop.
      sink: Where outputs that are larger than memory go, as they come, under the results folder. The outputs of all
        items are then what `Sink.finish` returns. Without a sink, or without a folder, they are collected in memory:
        on process 0, and on every process only if there is a `score_fn`.
      score_fn: Device work over the outputs of all items, ordered by index, in blocks (`train.scoring`). Every process
        calls it, since all devices of the mesh take part; what it returns, host arrays, counts on process 0 alone.
      summarize: Metrics of the outputs of all items and of `score_fn`; numpy, on process 0.
      write: Puts predictions under the results folder; on process 0.
      protocol: What a reader needs to know to trust the numbers; written beside them.
    """

    data: Callable[[DataShard], Pipeline]
    predict_fn: Callable[[Variables, Batch], Outputs]
    sink: Callable[[Path], Sink] | None = None
    score_fn: Callable[[Variables, Outputs, jax.sharding.Mesh], Outputs] | None = None
    summarize: Callable[[Outputs], dict[str, float]] | None = None
    write: Callable[[Outputs, Path], None] | None = None
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """One system, as plain functions.

    Attributes:
      name: The stem.
      batch_specs: Shapes and types of the global training batch, one entry per length bucket.
      init: Variables from a key and a batch.
      loss_fn: (params, model_state, batch, key) -> (loss, Aux); sees the global batch.
      train_data: Endless pipeline of full batches.
      evaluators: By name.
      encoders: By name: what extraction, prediction and the Python interface use.
      partition_rules: How parameters are sharded.
      after_init: Changes the variables of a new run once, after every source of `config.init_from` was read: word
        tables from files, momentum encoders as copies of the loaded encoders. Not called on a resume.
      run_state: Collections of the model state that belong to a run, not to the model: a resumed run takes them from
        its checkpoint, and nothing else does.
    """

    name: str
    batch_specs: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]
    init: Callable[[jax.Array, Batch], Variables]
    loss_fn: Callable[[Params, ModelState, Batch, jax.Array], tuple[jax.Array, Aux]]
    train_data: Callable[[DataShard], Pipeline]
    evaluators: Mapping[str, Evaluator]
    encoders: Mapping[str, Callable[[Variables, Batch], Outputs]]
    partition_rules: PartitionRules = ()
    after_init: Callable[[Variables], Variables] | None = None
    run_state: tuple[str, ...] = ()

    def abstract_variables(self) -> Variables:
        """Shapes and types of the model's variables, without `run_state`; nothing is allocated."""
        specs = next(iter(self.batch_specs.values()))
        found = jax.eval_shape(self.init, jax.random.key(0), specs)
        return {name: tree for name, tree in found.items() if name not in self.run_state}


def get_task(config: ConfigDict) -> Task:
    """The task that `config.task` names."""
    return configs.system_module(config.task, "task").make_task(config)

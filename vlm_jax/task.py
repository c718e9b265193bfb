"""Interface of a system: all that the training and evaluation loops know of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, PyTree, Sink, Variables

PartitionRules = Sequence[tuple[str, jax.sharding.PartitionSpec]]
"""Pairs of a regular expression on names ('a/b/kernel') and a sharding; the first match wins, no match replicates."""


class Aux(NamedTuple):
    """Results of a loss function beside the loss.

    Attributes:
      metrics: Scalars by name, averaged over the steps between two log lines.
      model_state: New model state.
    """

    metrics: dict[str, jax.Array]
    model_state: PyTree


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluation of a system by one protocol on one data set.

    Attributes:
      data: Function that opens a finite pipeline of padded batches with `mask` `[B]` and `index` `[B]`. Every process
        gets the same number of batches. `epoch_examples` is the number of items, and each item comes once.
      predict_fn: Function from variables and a batch to outputs with the batch axis first; jitted by the loop.
      counts: Name of the output, int `[B]`, that says how many rows of each item are real, for items with varying
        numbers of boxes; the other outputs are then `[B, N, ...]` with padding at the end. Whatever follows gets them
        packed: `[M, ...]`, the real rows of item 0, then of item 1 and so on, beside the counts of all items.
      sink: Function from the results folder to a writer of outputs that are larger than memory. `Sink.finish` then
        returns the outputs of all items. Without a sink, or without a folder, outputs are collected in memory: on
        process 0, or on every process if there is a `score_fn`.
      score_fn: Function from the outputs of all items, ordered by index, to further outputs, computed on the devices in
        blocks (`train.scoring`). Every process calls it, since all devices of the mesh take part. It returns host
        arrays, and only those of process 0 are used.
      summarize: Function from the outputs of all items and of `score_fn` to metrics; numpy, on process 0.
      write: Function that writes predictions into the results folder, on process 0; it also gets the origin of the
        results (checkpoint, step, weights).
      protocol: Facts that a reader needs to judge the metrics; written beside them.
    """

    data: Callable[[DataShard], Pipeline]
    predict_fn: Callable[[Variables, Batch], Outputs]
    counts: str = ""
    sink: Callable[[Path], Sink] | None = None
    score_fn: Callable[[Variables, Outputs, jax.sharding.Mesh], Outputs] | None = None
    summarize: Callable[[Outputs], dict[str, float]] | None = None
    write: Callable[[Outputs, Path, Mapping[str, Any]], None] | None = None
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """One system, as plain functions.

    Attributes:
      name: Name of the system.
      batch_specs: Shapes and types of the global training batch, one entry per length bucket.
      init: Function from a key and a batch to variables.
      loss_fn: Function `(params, model_state, batch, key) -> (loss, Aux)` on the global batch.
      train_data: Function that opens an endless pipeline of full batches.
      evaluators: Evaluators by name.
      encoders: Functions for extraction, prediction and the Python interface, by name.
      partition_rules: Sharding of the parameters.
      after_init: Function that changes the variables of a new run once, after every source of `config.init_from` was
        read: word tables from files, momentum encoders as copies of the loaded encoders. Not called for a resumed run.
      run_state: Collections of the model state that belong to a run, not to the model. Only a resumed run reads them
        from its checkpoint.
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
        """Return shapes and types of the model's variables, without `run_state`; nothing is allocated."""
        specs = next(iter(self.batch_specs.values()))
        found = jax.eval_shape(self.init, jax.random.key(0), specs)
        return {name: tree for name, tree in found.items() if name not in self.run_state}


def get_task(config: ConfigDict) -> Task:
    """Return the task that `config.task` names."""
    return configs.system_module(config.task, "task").make_task(config)

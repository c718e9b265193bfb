"""What the training and evaluation loops know of a system."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, PyTree, Variables

Rules = Sequence[tuple[str, jax.sharding.PartitionSpec]]
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
      data: Finite pipeline of padded batches with `mask` [B] and `index` [B], equally many on every process.
      predict_fn: Jitted by the loop; outputs keep the batch axis first.
      score_fn: Device work over all items at once, ordered by index.
      summarize: Metrics of the whole set; numpy, on process 0.
      write: Puts predictions under the results folder; on process 0.
      protocol: What a reader needs to know to trust the numbers; written beside them.
    """

    data: Callable[[DataShard], Pipeline]
    predict_fn: Callable[[Variables, Batch], Outputs]
    score_fn: Callable[[Variables, Outputs], Outputs] | None = None
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
      from_files: Puts into fresh variables what comes from files, such as a word table; not called on a resume.
    """

    name: str
    batch_specs: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]
    init: Callable[[jax.Array, Batch], Variables]
    loss_fn: Callable[[Params, ModelState, Batch, jax.Array], tuple[jax.Array, Aux]]
    train_data: Callable[[DataShard], Pipeline]
    evaluators: Mapping[str, Evaluator]
    encoders: Mapping[str, Callable[[Variables, Batch], Outputs]]
    partition_rules: Rules = ()
    from_files: Callable[[Variables], Variables] | None = None

    def abstract_variables(self) -> Variables:
        """Shapes and types of the variables; nothing is allocated."""
        specs = next(iter(self.batch_specs.values()))
        return jax.eval_shape(self.init, jax.random.key(0), specs)


def get_task(config: ConfigDict) -> Task:
    """The task that `config.task` names."""
    return importlib.import_module(f"vlm_jax.tasks.{config.task}").make_task(config)

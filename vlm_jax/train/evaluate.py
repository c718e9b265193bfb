"""The evaluation loop of every system."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlm_jax.progress import Progress
from vlm_jax.task import Evaluator
from vlm_jax.train import sharding
from vlm_jax.types import DataShard, Outputs, Variables


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluator found: metrics, and the outputs of all items in order (empty off process 0)."""

    metrics: dict[str, float]
    outputs: Outputs


def run(evaluator: Evaluator, variables: Variables, mesh: Mesh, batch_size: int) -> Evaluation:
    """Predicts every item once, scores and summarises.

    Padding goes by the batch's `mask`, order by its `index`, so neither the number of processes nor the batch size
    changes a metric.

    Args:
      evaluator: What to run.
      variables: Of the model.
      mesh: Where.
      batch_size: Of the global batch; rounded up to what the mesh divides.
    """
    shards = mesh.shape["data"]
    batch_size = -(-batch_size // shards) * shards
    shard = DataShard(jax.process_index(), jax.process_count(), batch_size, 0)
    predict = jax.jit(evaluator.predict_fn, out_shardings=NamedSharding(mesh, PartitionSpec()))
    collected: list[dict[str, np.ndarray]] = []
    data = evaluator.data(shard)
    with Progress("evaluating", data.epoch_examples(), enabled=jax.process_index() == 0) as progress:
        for batch in data:
            inputs = {name: value for name, value in batch.items() if name not in ("mask", "index")}
            outputs = jax.device_get(predict(variables, sharding.shard_batch(mesh, inputs)))
            mask, index = _gather(batch["mask"]).astype(bool), _gather(batch["index"])
            collected.append({name: value[mask] for name, value in {**outputs, "index": index}.items()})
            progress.advance(int(mask.sum()))
    merged = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
    order = np.argsort(merged["index"], kind="stable")
    index = merged["index"][order]
    if len(np.unique(index)) != len(index):
        raise ValueError(f"evaluation: {len(index) - len(np.unique(index))} items came twice")
    outputs: Mapping[str, Any] = {name: value[order] for name, value in merged.items()}
    if evaluator.score_fn:
        outputs = {**outputs, **jax.device_get(evaluator.score_fn(variables, outputs))}
    metrics = evaluator.summarize(outputs) if evaluator.summarize else {}
    return Evaluation(metrics, outputs)


def write_results(folder: Path, name: str, evaluation: Evaluation, evaluator: Evaluator, origin: Mapping) -> None:
    """Writes `NAME.json` (metrics, protocol, origin) and what the evaluator itself writes."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"metrics": evaluation.metrics, "protocol": dict(evaluator.protocol), **origin}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    if evaluator.write:
        evaluator.write(evaluation.outputs, folder)


def _gather(local: np.ndarray) -> np.ndarray:
    """The global batch of an array that every process holds a consecutive part of."""
    if jax.process_count() == 1:
        return np.asarray(local)
    return np.asarray(multihost_utils.process_allgather(np.asarray(local), tiled=True))

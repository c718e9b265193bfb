"""The evaluation loop of every system."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vlm_jax.errors import DataError
from vlm_jax.files import finite, write_atomically
from vlm_jax.progress import Progress
from vlm_jax.task import Evaluator
from vlm_jax.train.batches import predict_batches
from vlm_jax.train.sinks import merge, pack
from vlm_jax.train.state import fingerprint
from vlm_jax.types import DataShard, Outputs, Pipeline, Sink, Variables


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of one evaluator.

    Attributes:
      metrics: Metrics by name, the same on every process.
      outputs: Outputs of all items, rows by index or packed, and those of `score_fn`; empty on every process but
        process 0.
    """

    metrics: dict[str, float]
    outputs: Outputs


def run(
    evaluator: Evaluator,
    variables: Variables,
    mesh: Mesh,
    batch_size: int,
    folder: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Predict every item once, score the outputs and compute the metrics; all processes call it.

    The batch's `mask` marks padding and its `index` gives the order, so metrics depend neither on the number of
    processes nor on the batch size.

    Args:
      evaluator: Data, functions and sink.
      variables: Variables of the model.
      mesh: Devices over which batches are sharded.
      batch_size: Number of items per global batch; rounded up to a multiple of the data shards.
      folder: Folder that the evaluator's sink writes to. A killed evaluation resumes from what lies there. Without a
        folder, the outputs are collected in memory.
      check: Function that is called after every batch, equally often on all processes; it raises to end the evaluation.

    Raises:
      DataError: if an item is missing or came twice, or `folder` has parts of another evaluation.
    """
    shards = mesh.shape["data"]
    batch_size = -(-batch_size // shards) * shards
    data = evaluator.data(DataShard(jax.process_index(), jax.process_count(), batch_size, 0))
    if not data.epoch_examples():
        raise DataError("evaluation: the data have no items")
    if evaluator.sink and folder is not None:
        outputs = _stream(evaluator, evaluator.sink(folder), data, variables, mesh, batch_size, check)
    else:
        outputs = _collect(evaluator, data, variables, mesh, batch_size, check)
    if evaluator.score_fn:
        outputs = {**outputs, **jax.device_get(evaluator.score_fn(variables, outputs, mesh))}
    if jax.process_index():
        outputs = {}
    metrics = evaluator.summarize(outputs) if outputs and evaluator.summarize else {}
    return Evaluation(_from_first(metrics), outputs)


def one_line(metrics: Mapping[str, float]) -> str:
    """Return the main metrics (those whose names have no '/') as one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name)


def check_results(folder: Path, name: str, evaluator: Evaluator, origin: Mapping, *, overwrite: bool) -> None:
    """Check that writing results would not replace those of another evaluation; print a line if it replaces any.

    The same evaluation of a newer checkpoint replaces the older one.

    Args:
      folder: Folder of `NAME.json`, which may be missing.
      name: Name of the evaluator.
      evaluator: Evaluator whose protocol is compared.
      origin: Description of what was evaluated; its `checkpoint` and `step` are not compared.
      overwrite: If true, results of another evaluation may be replaced as well.

    Raises:
      DataError: naming the first key that differs.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text())
        found = {**found["protocol"], **found}
    except (ValueError, KeyError, TypeError):
        found = {}
    expected = json.loads(json.dumps({**evaluator.protocol, **origin}))
    differing = [key for key in expected if key not in ("checkpoint", "step") and found.get(key) != expected[key]]
    if differing and not overwrite:
        key = differing[0]
        raise DataError(
            f"{path}: holds another evaluation: {key} is {found.get(key)!r} there, now {expected[key]!r}; --name LABEL "
            "writes beside it, --overwrite replaces it"
        )
    if jax.process_index() == 0 and (differing or found["step"] != expected["step"]):
        print(f"{path}: replaces the results of step {found.get('step')}")


def write_results(folder: Path, name: str, evaluation: Evaluation, evaluator: Evaluator, origin: Mapping) -> None:
    """Write `NAME.json` (metrics, protocol, origin) and the evaluator's own files, on process 0."""
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if evaluator.write:
        evaluator.write(evaluation.outputs, folder, origin)
    content = finite({"metrics": evaluation.metrics, "protocol": dict(evaluator.protocol), **origin})
    write_atomically(folder / f"{name}.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _collect(
    evaluator: Evaluator,
    data: Pipeline,
    variables: Variables,
    mesh: Mesh,
    batch_size: int,
    check: Callable[[], None],
) -> Outputs:
    """Return the outputs of all items in memory: on every process if there is a `score_fn`, else on process 0."""
    batches, total = [], data.epoch_examples()
    keep = jax.process_index() == 0 or evaluator.score_fn is not None
    found = predict_batches(evaluator.predict_fn, variables, data, mesh=mesh, gather=True)
    for index, outputs in _shown(found, 0, total, batch_size):
        if keep:
            batches.append((index, pack(outputs, evaluator.counts)))
        check()
    return merge(lambda: batches, total, evaluator.counts) if keep else {}


def _stream(
    evaluator: Evaluator,
    sink: Sink,
    data: Pipeline,
    variables: Variables,
    mesh: Mesh,
    batch_size: int,
    check: Callable[[], None],
) -> Outputs:
    """Return the outputs of all items from a sink, to which every process writes its own part.

    The evaluation resumes after the last batch that all processes have written.
    """
    total = data.epoch_examples()
    written = sink.resume(
        {
            **{f"protocol.{name}": value for name, value in evaluator.protocol.items()},
            "items": total,
            "batch_size": batch_size,
            "processes": jax.process_count(),
            "variables": fingerprint(variables),
        }
    )
    # All devices take part in a batch. If one process lacks a batch, all processes compute it again.
    done = int(np.min(multihost_utils.process_allgather(np.asarray(written))))
    data.restore(done * batch_size)
    found = predict_batches(evaluator.predict_fn, variables, data, mesh=mesh)
    for number, (index, outputs) in enumerate(_shown(found, done, total, batch_size), start=done):
        sink.write(number, index, pack(outputs, evaluator.counts))
        check()
    return sink.finish(total, evaluator.counts)


def _shown(
    found: Iterator[tuple[np.ndarray, Outputs]], done: int, total: int, batch_size: int
) -> Iterator[tuple[np.ndarray, Outputs]]:
    """Yield the batches unchanged and show a progress bar, which begins after `done` batches."""
    start = min(done * batch_size, total)
    with contextlib.closing(found), Progress("evaluating", total, enabled=not jax.process_index(), start=start) as bar:
        for number, batch in enumerate(found, start=done):
            yield batch
            bar.advance(min(batch_size, total - number * batch_size))


def _from_first(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of process 0 on every process, so that all choose the same best checkpoints."""
    if jax.process_count() == 1:
        return dict(metrics)
    text = np.frombuffer(json.dumps(metrics, default=float).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        padded[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes())

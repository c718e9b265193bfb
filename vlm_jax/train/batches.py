"""Batched prediction: batches are read ahead in a thread, and one batch is in flight on the devices."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.train import sharding
from vlm_jax.types import Batch, Outputs, Variables

Item = TypeVar("Item")
MARKS = ("mask", "index")
"""Arrays of a batch that the prediction function does not get: `mask` is 0 for padding, `index` the item's number."""


def predict_batches(
    predict: Callable[[Variables, Batch], Outputs],
    variables: Variables,
    batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
    gather: bool = False,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Predict batch after batch: while one is read, one is on the devices and one is fetched.

    The function is compiled once per batch shape, even over several calls with the same `predict` object.

    Args:
      predict: Function from variables and a batch to outputs, examples along the first axis; jitted here.
      variables: Variables of the model. Those that are not on the devices are copied there once.
      batches: Padded batches with `mask` `[B]` and `index` `[B]`; every process supplies its own part.
      mesh: Devices over which the batch is sharded; without one, a batch runs on the default device of this process.
      gather: If true, every process yields the items of all processes instead of its own.

    Yields:
      (index `[n]`, outputs `[n, ...]`) of the real items of one batch, in the order of the batch. Close the iterator
      if it is not exhausted.
    """
    variables = sharding.replicate(mesh, variables)
    run = jax.jit(predict) if mesh is None else jax.jit(predict, out_shardings=sharding.batch_sharding(mesh))
    several = gather and mesh is not None and jax.process_count() > 1

    def place(batch: Batch) -> tuple[Any, Any]:
        marks = {name: np.asarray(batch[name]) for name in MARKS}
        inputs = {name: value for name, value in batch.items() if name not in MARKS}
        if mesh is None:
            return marks, jax.device_put(inputs)
        return sharding.shard_batch(mesh, marks) if several else marks, sharding.shard_batch(mesh, inputs)

    with contextlib.closing(read_ahead(map(place, batches))) as placed:
        results = ((marks, run(variables, inputs)) for marks, inputs in placed)
        if several:
            spread = jax.jit(_identity, out_shardings=sharding.replicated(mesh))
            results = map(spread, results)
        for marks, outputs in one_in_flight(results):
            mask = sharding.local_rows(marks["mask"]).astype(bool)
            index = sharding.local_rows(marks["index"])[mask]
            yield index, {name: sharding.local_rows(value)[mask] for name, value in outputs.items()}


def read_ahead(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """Yield the items of an iterable that a background thread reads, up to `ahead` of them in advance.

    Closing the generator ends the thread.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def offer(real: bool, item: Any) -> None:
        while not closed.is_set():
            try:
                return ready.put((real, item), timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                offer(True, item)
                if closed.is_set():
                    return
            offer(False, None)
        except BaseException as error:  # raised where the items are used
            offer(False, error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            real, item = ready.get()
            if real:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        closed.set()
        reader.join()


def one_in_flight(results: Iterable[Item]) -> Iterator[Item]:
    """Yield each result after the next one has been dispatched, so that the devices work while the host fetches."""
    waiting, in_turn = [], runs_in_turn()
    for result in results:
        if in_turn:
            jax.block_until_ready(result)
        waiting.append(result)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def runs_in_turn() -> bool:
    """Return whether a computation must end before the next is dispatched.

    Several CPU devices share one pool of threads, in which queued computations can wait for one another until XLA
    aborts.
    """
    return jax.default_backend() == "cpu" and jax.local_device_count() > 1


def _identity(tree: Any) -> Any:
    return tree

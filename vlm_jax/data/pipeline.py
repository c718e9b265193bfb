"""Input pipeline of all systems, which orders and batches examples from any storage. It needs only numpy.

A system supplies examples (`MemoryExamples` here, or `RecordExamples` from `record_examples.py`, which needs
TensorFlow) and a function that collates a batch. The pipeline owns the position, the order, streams, weighted sources
and buckets. A side table, such as a memory-mapped bank of features, is joined in the collate function by a key of the
examples or by their numbers.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vlm_jax.data.order import DistinctOrder, Order, Place, StreamOrder
from vlm_jax.errors import DataError
from vlm_jax.types import DataShard

Columns = Mapping[str, Sequence[Any]]
"""One value per example, by name: an array, or a list if arrays differ in shape."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Sizes that batches are padded to; metadata decide the bucket of a batch, so all processes choose the same.

    With several dimensions, such as height and width, a size is chosen for each of them separately.

    Attributes:
      lengths: Size that each example needs, int64 `[N]`, or `[N, D]` with D dimensions.
      sizes: Allowed sizes, ascending; with D dimensions, a tuple of sizes for each.

    Raises:
      DataError: if an example is longer than the largest bucket.
    """

    lengths: np.ndarray
    sizes: tuple[int, ...] | tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for lengths, sizes in self._dimensions():
            if len(lengths) and lengths.max() > sizes[-1]:
                longest = int(lengths.argmax())
                raise DataError(f"buckets {list(sizes)}: example {longest} has length {lengths[longest]}")

    def fit(self, numbers: np.ndarray) -> np.ndarray:
        """Return the smallest bucket that holds each example: int64 `[n]` or `[n, D]` for `numbers` `[n]`."""
        found = [np.asarray(sizes)[np.searchsorted(sizes, lengths[numbers])] for lengths, sizes in self._dimensions()]
        return np.stack(found, -1) if self.lengths.ndim > 1 else found[0]

    def hold(self, numbers: np.ndarray) -> int | tuple[int, ...]:
        """Return the smallest bucket that holds all of these examples: one size, or one per dimension."""
        largest = self.fit(numbers).max(0).tolist()
        return tuple(largest) if self.lengths.ndim > 1 else largest

    def sort(self, numbers: np.ndarray) -> np.ndarray:
        """Return the examples by ascending bucket, that of the first dimension first; equal ones keep their order."""
        return numbers[np.lexsort(np.atleast_2d(self.fit(numbers).T)[::-1])]

    def _dimensions(self) -> Iterable[tuple[np.ndarray, tuple[int, ...]]]:
        """Return the lengths of all examples and the allowed sizes, for each dimension."""
        return zip(self.lengths.T, self.sizes, strict=True) if self.lengths.ndim > 1 else [(self.lengths, self.sizes)]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Plan of one global batch, for what a collate function needs beside the examples themselves.

    Attributes:
      number: Function from a slot of the global batch to the number of its example, counted over all sources.
      shard: Part of the batch that this process supplies.
      buckets: Sizes of batches, or None if all have one size.
    """

    number: Callable[[int], int]
    shard: DataShard
    buckets: Buckets | None = None

    @property
    def own(self) -> slice:
        """Return the rows of the global batch that this process supplies."""
        local = self.shard.local_batch_size
        return slice(self.shard.index * local, (self.shard.index + 1) * local)

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """Return the numbers of the examples of the whole batch, int64 `[B]`; computed on first use."""
        return np.array([self.number(slot) for slot in range(self.shard.batch_size)], np.int64)

    @functools.cached_property
    def own_numbers(self) -> np.ndarray:
        """Return the numbers of the examples that this process supplies, int64 `[n]`."""
        return np.array([self.number(slot) for slot in range(self.own.start, self.own.stop)], np.int64)

    @functools.cached_property
    def bucket(self) -> int | tuple[int, ...]:
        """Return the size that the whole batch is padded to, or one size per dimension; 0 without buckets."""
        return self.buckets.hold(self.numbers) if self.buckets else 0


Collate = Callable[[Columns, BatchPlan], dict[str, np.ndarray]]
"""(values of this process's examples, plan of the whole batch) -> arrays of this process's part."""


def stack(columns: Columns, plan: BatchPlan) -> dict[str, np.ndarray]:
    """Collate examples whose arrays have equal shapes."""
    del plan
    return {name: value if isinstance(value, np.ndarray) else np.stack(value) for name, value in columns.items()}


class Examples(Protocol):
    """Collection of examples that a pipeline reads.

    A reference to an example has any type; each implementation makes its own and reads them.

    Attributes:
      name: Name in error messages.
      sizes: Number of training examples per shard, for every source.
      num_items: Number of items that evaluation visits.
    """

    name: str
    sizes: Sequence[np.ndarray]
    num_items: int

    def locate(self, place: Place) -> Any:
        """Return a reference to a training example."""

    def item(self, number: int) -> Any:
        """Return a reference to an item of evaluation, counted over all sources."""

    def read(self, references: Callable[[int], list[Any]], first: int, last: int | None = None) -> Iterator[Columns]:
        """Yield the values of the examples of every batch, from `first` on and before `last`.

        Args:
          references: Function from a batch's number to the references of this process's part of it, which come from
            `locate` or `item`.
          first: Number of the first batch.
          last: Number after the last batch; None for endless batches.
        """


class MemorySource(NamedTuple):
    """Examples that a function reads from memory.

    Attributes:
      count: Number of examples.
      read: Function from number and seed (for `numpy.random.default_rng`) to the values of one example by name.
    """

    count: int
    read: Callable[[int, tuple[int, ...]], Mapping[str, Any]]


class MemoryExamples:
    """Examples of one or several sources in memory; each source is one shard."""

    def __init__(self, *sources: MemorySource, name: str = "data") -> None:
        self.name, self.sources = name, sources
        self.sizes = [np.array([source.count]) for source in sources]
        self._starts = np.cumsum([0, *(source.count for source in sources)])
        self.num_items = int(self._starts[-1])

    def locate(self, place: Place) -> tuple[int, int, tuple[int, ...]]:
        """Return source, number and seed of a training example."""
        return place.source, place.group, place.seed

    def item(self, number: int) -> tuple[int, int, tuple[int, ...]]:
        """Return source, number and seed of an item; evaluation draws nothing, so all have the same seed."""
        source = int(np.searchsorted(self._starts, number, side="right")) - 1
        return source, number - int(self._starts[source]), (0,)

    def read(self, references: Callable[[int], list[Any]], first: int, last: int | None = None) -> Iterator[Columns]:
        """Yield the values of the examples of every batch."""
        for batch in itertools.count(first) if last is None else range(first, last):
            rows = [self.sources[source].read(number, seed) for source, number, seed in references(batch)]
            yield {name: [row[name] for row in rows] for name in rows[0]}


class StatefulPipeline:
    """Base class of pipelines with a position: the number of examples consumed by all processes, padding included."""

    def __init__(self, shard: DataShard) -> None:
        self.shard, self._position = shard, 0

    def position(self) -> int:
        """Return the number of examples consumed."""
        return self._position

    def restore(self, position: int) -> None:
        """Begin the next iteration after `position` examples.

        Raises:
          DataError: if it is not a whole number of batches.
        """
        if position % self.shard.batch_size:
            raise DataError(f"data position {position} is no multiple of the batch size {self.shard.batch_size}")
        self._position = position


class TrainPipeline(StatefulPipeline):
    """Endless full batches in an order that depends only on these settings, the seed and the position.

    Args:
      examples: Examples to read.
      shard: Part of every batch that this process supplies.
      streams: Number of parts of the data that are read side by side; a divisor of the batch size.
      block: Number of consecutive examples of a stream that are permuted together; 0 permutes the whole stream.
      weights: Relative number of examples per source, small integers. Without weights, every example comes once per
        epoch.
      distinct: Key of every example, int64 `[N]`. If given, every batch is drawn independently, and no two of its
        examples have the same key; streams, blocks and weights do not apply.
      buckets: Sizes of batches, by the lengths of all examples.
      collate: Function that makes a batch of its examples.

    Raises:
      DataError: if these numbers do not fit, or an epoch is shorter than a batch.
    """

    def __init__(
        self,
        examples: Examples,
        shard: DataShard,
        *,
        streams: int = 1,
        block: int = 0,
        weights: Sequence[int] = (),
        distinct: np.ndarray | None = None,
        buckets: Buckets | None = None,
        collate: Collate = stack,
    ) -> None:
        if shard.batch_size % streams or shard.batch_size % shard.count:
            raise DataError(
                f"{examples.name}: {streams} streams, a batch of {shard.batch_size}, {shard.count} processes; expected "
                "streams and processes that divide the batch"
            )
        super().__init__(shard)
        self.examples, self.buckets, self.collate = examples, buckets, collate
        self._order: Order
        if distinct is None:
            settings = {"streams": streams, "block": block, "weights": weights, "name": examples.name}
            self._order = StreamOrder(examples.sizes, shard, **settings)
        else:
            self._order = DistinctOrder(examples.sizes, shard, distinct, name=examples.name)

    def epoch_examples(self) -> int:
        """Return the examples of one epoch; the remainder that fills no batch is dropped."""
        return self._order.batches * self.shard.batch_size

    def plan(self, batch: int) -> BatchPlan:
        """Return the plan of a batch, which is counted from the beginning of the run."""
        return BatchPlan(lambda slot: self._order.place(batch, slot).number, self.shard, self.buckets)

    def references(self, batch: int) -> list[Any]:
        """Return what `examples` reads for this process's part of a batch.

        Raises:
          DataError: if an index is missing or damaged.
        """
        own = self.plan(batch).own
        return [self.examples.locate(self._order.place(batch, slot)) for slot in range(own.start, own.stop)]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches from the current position on.

        Raises:
          DataError: naming the file that is missing or damaged.
        """
        first = self._position // self.shard.batch_size
        for batch, values in enumerate(self.examples.read(self.references, first), first):
            made = self.collate(values, self.plan(batch))
            self._position = (batch + 1) * self.shard.batch_size
            yield made


class EvaluationPipeline(StatefulPipeline):
    """Batches with every item once; all processes have equally many, and the last item pads the last batch.

    A batch has `mask` int32 `[B]`, 0 for padding, and `index` int32 `[B]`, the number of the item; padding is numbered
    beyond the last item. With buckets, items of equal buckets stand together, smallest first; otherwise they keep
    their order.

    Args:
      examples: Examples to read.
      shard: Part of every batch that this process supplies.
      buckets: Sizes of batches, by the lengths of all items.
      collate: Function that makes a batch of its items.
    """

    def __init__(
        self, examples: Examples, shard: DataShard, *, buckets: Buckets | None = None, collate: Collate = stack
    ) -> None:
        super().__init__(shard)
        self.examples, self.buckets, self.collate = examples, buckets, collate
        self._order = np.arange(examples.num_items)
        if buckets:
            self._order = buckets.sort(self._order)

    def epoch_examples(self) -> int:
        """Return the number of items."""
        return len(self._order)

    def plan(self, batch: int) -> BatchPlan:
        """Return the plan of a batch; padding repeats the last item."""
        first, last = batch * self.shard.batch_size, len(self._order) - 1
        return BatchPlan(lambda slot: int(self._order[min(first + slot, last)]), self.shard, self.buckets)

    def references(self, batch: int) -> list[Any]:
        """Return what `examples` reads for this process's part of a batch.

        Raises:
          DataError: if an index is missing or damaged.
        """
        return [self.examples.item(number) for number in self.plan(batch).own_numbers.tolist()]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches from the current position on.

        Raises:
          DataError: naming the file that is missing or damaged.
        """
        size, total = self.shard.batch_size, len(self._order)
        first, last = self._position // size, -(-total // size)
        for batch, values in enumerate(self.examples.read(self.references, first, last) if first < last else (), first):
            plan = self.plan(batch)
            rows = batch * size + np.arange(size)[plan.own]
            made = self.collate(values, plan)
            made["mask"] = (rows < total).astype(np.int32)
            made["index"] = np.where(rows < total, plan.own_numbers, rows).astype(np.int32)
            self._position = (batch + 1) * size
            yield made

"""Batches from shards: which records in which order (numpy), then reading and decoding them (tf.data).

The order of a training run. Every epoch permutes the shards; laid end to end, their groups form one sequence, which is
cut into `streams` equal stretches. Stream r supplies the r-th part of every batch, so the order does not depend on the
number of processes: each owns consecutive streams. Within a stream, disjoint blocks of `block` groups are permuted.
A place in all this is one integer, the examples consumed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vlm_jax.data import records
from vlm_jax.types import DataShard

Decode = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
"""(serialised record, seed of this example in this epoch) -> arrays of one example."""


class Split:
    """Where the records of one split lie.

    Raises:
      DataError: where the data set or the split is missing.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self.directory = Path(directory)
        content = records.read_protocol(self.directory)
        if split not in content["splits"]:
            raise records.DataError(f"data {directory}: no split {split!r}; it has {', '.join(content['splits'])}")
        self.protocol: dict[str, Any] = content["protocol"]
        shards = content["splits"][split]["shards"]
        self.groups = np.array(content["splits"][split]["groups"], np.int64)
        self.paths = [
            records.shard_path(self.directory, content["name"], split, index, shards) for index in range(shards)
        ]
        self._indices: dict[int, np.ndarray] = {}

    def index(self, shard: int) -> np.ndarray:
        """The index of one shard, kept for the next call."""
        if shard not in self._indices:
            if len(self._indices) >= 64:
                self._indices.pop(next(iter(self._indices)))
            self._indices[shard] = records.read_index(self.paths[shard])
        return self._indices[shard]


class TrainPipeline:
    """Endless full batches in an order that the seed, the streams and the position alone decide.

    Args:
      split: What to read.
      shard: The part that this process supplies.
      decode: Makes one example.
      streams: Divides the batch size; a multiple of the number of processes.
      block: Groups that are permuted together.
      workers: Examples decoded at the same time; 0 leaves it to tf.data.

    Raises:
      DataError: where an epoch is shorter than a batch.
    """

    def __init__(
        self, split: Split, shard: DataShard, decode: Decode, *, streams: int, block: int, workers: int = 0
    ) -> None:
        self.split, self.shard, self.decode = split, shard, decode
        self.streams, self.block, self.workers = streams, block, workers
        self.total = int(split.groups.sum())
        self.stream_length = self.total // streams
        self.per_stream = shard.batch_size // streams
        self.batches = self.stream_length // self.per_stream
        if not self.batches:
            raise records.DataError(
                f"data {split.directory}: {self.total} examples an epoch over {streams} streams do not fill a batch of "
                f"{shard.batch_size}"
            )
        self._position = 0

    def epoch_examples(self) -> int:
        """Examples of one epoch; the remainder that fills no batch is dropped."""
        return self.batches * self.shard.batch_size

    def position(self) -> int:
        """Examples handed out, over all processes."""
        return self._position

    def restore(self, position: int) -> None:
        """Begins the next iteration after `position` examples.

        Raises:
          DataError: where it is not a whole number of batches.
        """
        if position % self.shard.batch_size:
            raise records.DataError(
                f"data position {position} is no multiple of the batch size {self.shard.batch_size}"
            )
        self._position = position

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the current position on."""
        signature = (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64))
        first = self._position // self.shard.batch_size
        dataset = tf.data.Dataset.from_generator(lambda: self.plan(first), output_signature=signature)
        dataset = dataset.map(
            lambda path, offset, seed: self.decode(records.read_record(path, offset), seed),
            num_parallel_calls=self.workers or tf.data.AUTOTUNE,
            deterministic=True,
        )
        dataset = dataset.batch(self.shard.local_batch_size, drop_remainder=True).prefetch(2)
        for batch in _explained(dataset, self.split):
            self._position += self.shard.batch_size
            yield batch

    def plan(self, batch: int) -> Iterator[tuple[str, int, int]]:
        """Endless (path, offset, seed) of this process's examples, from a batch number on."""
        per_process = self.streams // self.shard.count
        own = range(self.shard.index * per_process, (self.shard.index + 1) * per_process)
        while True:
            epoch, within = divmod(batch, self.batches)
            readers = [self._stream(epoch, stream, within * self.per_stream) for stream in own]
            for _ in range(within, self.batches):
                for reader in readers:
                    for _ in range(self.per_stream):
                        yield next(reader)
                batch += 1

    def _stream(self, epoch: int, stream: int, start: int) -> Iterator[tuple[str, int, int]]:
        shards = np.random.default_rng((self.shard.seed, epoch)).permutation(len(self.split.paths))
        bounds = np.concatenate([[0], np.cumsum(self.split.groups[shards])])
        for block in range(start // self.block, -(-self.stream_length // self.block)):
            first = block * self.block
            size = min(self.block, self.stream_length - first)
            order = np.random.default_rng((self.shard.seed, epoch, stream, block)).permutation(size)
            for place in order[max(0, start - first) :]:
                group = stream * self.stream_length + first + int(place)
                slot = int(np.searchsorted(bounds, group, side="right")) - 1
                yield self._choose(epoch, int(shards[slot]), group - int(bounds[slot]))

    def _choose(self, epoch: int, shard: int, group: int) -> tuple[str, int, int]:
        """One record of a group, by weight, and the example's seed."""
        index = self.split.index(shard)
        numbers = index["group"]
        kinds = np.unique(numbers)
        rows = index[np.searchsorted(numbers, kinds[group]) : np.searchsorted(numbers, kinds[group], side="right")]
        rng = np.random.default_rng((self.shard.seed, epoch, shard, group))
        cumulative = np.cumsum(rows["weight"])
        chosen = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        row = rows[min(chosen, len(rows) - 1)]
        return str(self.split.paths[shard]), int(row["offset"]), int(rng.integers(2**62))


class EvaluationPipeline:
    """Every record once, in order, in equally many batches on every process.

    Batches carry `mask`, 0 for padding, and `index`, the record's number.

    Args:
      split: What to read.
      shard: The part that this process supplies.
      decode: Makes one example; its seed is 0.
      workers: Examples decoded at the same time; 0 leaves it to tf.data.
    """

    def __init__(self, split: Split, shard: DataShard, decode: Decode, *, workers: int = 0) -> None:
        self.split, self.shard, self.decode, self.workers = split, shard, decode, workers
        self.items = [
            (str(path), int(offset))
            for number, path in enumerate(split.paths)
            for offset in split.index(number)["offset"]
        ]
        self._position = 0

    def epoch_examples(self) -> int:
        """Number of records."""
        return len(self.items)

    def position(self) -> int:
        """Examples handed out, padding included, over all processes."""
        return self._position

    def restore(self, position: int) -> None:
        """Begins the next iteration there."""
        self._position = position

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the current position on."""
        local = self.shard.local_batch_size
        starts = range(self._position + self.shard.index * local, len(self.items), self.shard.batch_size)
        starts = [*starts]
        while len(starts) < -(-(len(self.items) - self._position) // self.shard.batch_size):
            starts.append(len(self.items))
        numbers = [start + place for start in starts for place in range(local)]
        rows = [(*self.items[min(n, len(self.items) - 1)], int(n < len(self.items)), n) for n in numbers]
        paths, offsets, mask, index = (list(column) for column in zip(*rows, strict=True))
        dataset = tf.data.Dataset.from_tensor_slices(
            (paths, np.array(offsets, np.int64), np.array(mask, np.int32), np.array(index, np.int32))
        )
        dataset = dataset.map(
            lambda path, offset, mask, index: {
                **self.decode(records.read_record(path, offset), tf.constant(0, tf.int64)),
                "mask": mask,
                "index": index,
            },
            num_parallel_calls=self.workers or tf.data.AUTOTUNE,
            deterministic=True,
        )
        for batch in _explained(dataset.batch(local, drop_remainder=True).prefetch(1), self.split):
            self._position += self.shard.batch_size
            yield batch


def _explained(dataset: tf.data.Dataset, split: Split) -> Iterator[dict[str, np.ndarray]]:
    """The data set's batches; a damaged file is named in the error."""
    try:
        yield from dataset.as_numpy_iterator()
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError):
        raise records.DataError(records.find_damage(split.paths)) from None
    except tf.errors.NotFoundError as error:
        raise records.DataError(f"data {split.directory}: {error.message.splitlines()[0]}") from None

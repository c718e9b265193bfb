"""Batches from shards: which records in which order (numpy), then reading and decoding them (tf.data).

The order of a training run. Every epoch permutes the shards; laid end to end, their groups form one sequence, which is
cut into `streams` equal stretches. Stream r supplies the r-th part of every batch, so the order does not depend on the
number of processes: each owns consecutive streams. Within a stream, disjoint blocks of `block` groups are permuted.
A place in all this is one integer, the examples consumed.
"""

import atexit
import functools
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vlm_jax.data import records
from vlm_jax.errors import DataError
from vlm_jax.types import DataShard

PURPOSES = ("shards", "block", "example")
"""What random numbers are drawn for, each with a sequence of its own."""

Decode = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
"""(serialised record, seed of this example in this epoch) -> arrays of one example."""
Stretch = Callable[[tf.Tensor], tuple[str, float, float]]
"""Serialised record -> its video, and the first and last second of what it holds of it."""


class Split:
    """Where the records of one split lie.

    Raises:
      DataError: where the data set or the split is missing.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        content = records.read_protocol(directory)
        self.directory = Path(directory)
        if split not in content["splits"]:
            raise DataError(f"data {directory}: no split {split!r}; it has {', '.join(content['splits'])}")
        self.protocol: dict[str, Any] = content["protocol"]
        found = content["splits"][split]
        self.groups = np.array(found["groups"], np.int64)
        self.records = np.array(found["records"], np.int64)
        self.paths = [
            records.shard_path(self.directory, content["name"], split, index, found["shards"])
            for index in range(found["shards"])
        ]
        self._read = functools.lru_cache(maxsize=64)(self._read_shard)

    def index(self, shard: int) -> np.ndarray:
        """The index of one shard, one row a record.

        Raises:
          DataError: where it cannot be read or does not fit the data set.
        """
        return self._read(shard)[0]

    def group(self, shard: int, number: int) -> np.ndarray:
        """The index rows of one group of a shard, counted from 0. Raises as `index` does."""
        index, starts = self._read(shard)
        return index[starts[number] : starts[number + 1]]

    def _read_shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        index = records.read_index(self.paths[shard])
        starts = np.append(np.flatnonzero(np.diff(index["group"], prepend=-1)), len(index))
        found = len(index), len(starts) - 1
        expected = int(self.records[shard]), int(self.groups[shard])
        if found != expected:
            raise DataError(
                f"{records.index_path(self.paths[shard])}: {found[0]} records in {found[1]} groups, "
                f"{records.PROTOCOL} says {expected[0]} in {expected[1]}; run the preparation again"
            )
        return index, starts


class Counted:
    """A pipeline's place in its data: the examples handed out, padding included, over all processes."""

    def __init__(self, shard: DataShard) -> None:
        self.shard, self._position = shard, 0

    def position(self) -> int:
        """Examples handed out."""
        return self._position

    def restore(self, position: int) -> None:
        """Begins the next iteration after `position` examples.

        Raises:
          DataError: where it is not a whole number of batches.
        """
        if position % self.shard.batch_size:
            raise DataError(f"data position {position} is no multiple of the batch size {self.shard.batch_size}")
        self._position = position


class TrainPipeline(Counted):
    """Endless full batches in an order that the seed, the streams and the position alone decide.

    Args:
      split: What to read.
      shard: The part that this process supplies.
      decode: Makes one example.
      streams: Divides the batch size; a multiple of the number of processes.
      block: Groups that are permuted together.
      workers: Examples decoded at the same time; 0 leaves it to tf.data.
      stretch: What a record holds of which video, where its records are stretches of videos.

    Raises:
      DataError: where these numbers do not fit, or an epoch is shorter than a batch.
    """

    def __init__(
        self,
        split: Split,
        shard: DataShard,
        decode: Decode,
        *,
        streams: int,
        block: int,
        workers: int = 0,
        stretch: Stretch | None = None,
    ) -> None:
        if shard.batch_size % streams or streams % shard.count:
            raise DataError(
                f"data {split.directory}: {streams} streams, a batch of {shard.batch_size}, {shard.count} processes; "
                "expected streams that divide the batch, and processes that divide the streams"
            )
        super().__init__(shard)
        self.split, self.decode, self.stretch = split, decode, stretch
        self.streams, self.block, self.workers = streams, block, workers
        self.total = int(split.groups.sum())
        self.stream_length = self.total // streams
        self.per_stream = shard.batch_size // streams
        self.batches = self.stream_length // self.per_stream
        if not self.batches:
            raise DataError(
                f"data {split.directory}: {self.total} examples an epoch over {streams} streams do not fill a batch of "
                f"{shard.batch_size}"
            )
        self._shards = functools.lru_cache(maxsize=2)(self._shard_order)
        self._block = functools.lru_cache(maxsize=2 * streams)(self._block_order)

    def epoch_examples(self) -> int:
        """Examples of one epoch; the remainder that fills no batch is dropped."""
        return self.batches * self.shard.batch_size

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the current position on.

        Raises:
          DataError: naming the file that is missing or damaged.
        """
        local, types = self.shard.local_batch_size, (tf.string, tf.int64, tf.int64)

        def plan(batch: np.int64) -> list[np.ndarray]:
            columns = zip(*self.plan(int(batch)), strict=True)
            return [np.array(column, kind.as_numpy_dtype) for column, kind in zip(columns, types, strict=True)]

        # Not from_generator: it makes TensorFlow give freed memory back at once, which costs a quarter of the speed.
        dataset = tf.data.Dataset.counter(self._position // self.shard.batch_size)
        dataset = dataset.map(
            lambda batch: tuple(tf.ensure_shape(part, [local]) for part in tf.numpy_function(plan, [batch], types))
        )
        dataset = dataset.unbatch().map(
            lambda path, offset, seed: self.decode(records.read_record(path, offset), seed),
            num_parallel_calls=self.workers or tf.data.AUTOTUNE,
            deterministic=True,
        )
        for batch in _batches(
            dataset.batch(local, drop_remainder=True).prefetch(2),
            lambda: self.plan(self._position // self.shard.batch_size),
            self.decode,
        ):
            self._position += self.shard.batch_size
            yield batch

    def bytes_per_hour(self, sample: int = 8) -> float | None:
        """Disk use of an hour of video, from the first shards; None where records are no stretches of videos."""
        size, seconds, video, reached = 0, 0.0, "", 0.0
        for path in self.split.paths[:sample] if self.stretch else ():
            size += path.stat().st_size
            for serialised in tf.data.TFRecordDataset(str(path)):
                name, begin, end = self.stretch(serialised)
                # Neighbours overlap; what both hold is counted once.
                begin = max(begin, reached) if name == video else begin
                seconds += max(0.0, end - begin)
                video, reached = name, end
        return size / seconds * 3600 if seconds else None

    def plan(self, batch: int) -> list[tuple[str, int, int]]:
        """(path, offset, seed) of every example that this process supplies to a batch, counted from the run's start.

        Raises:
          DataError: where an index is missing or damaged.
        """
        epoch, within = divmod(batch, self.batches)
        own = self.streams // self.shard.count
        return [
            self._example(epoch, stream, within * self.per_stream + place)
            for stream in range(self.shard.index * own, (self.shard.index + 1) * own)
            for place in range(self.per_stream)
        ]

    def _example(self, epoch: int, stream: int, place: int) -> tuple[str, int, int]:
        block, within = divmod(place, self.block)
        number = stream * self.stream_length + block * self.block + int(self._block(epoch, stream, block)[within])
        shards, bounds = self._shards(epoch)
        slot = int(np.searchsorted(bounds, number, side="right")) - 1
        shard, group = int(shards[slot]), number - int(bounds[slot])
        rng = self._rng("example", epoch, shard, group)
        rows = self.split.group(shard, group)
        cumulative = np.cumsum(rows["weight"])
        chosen = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        offset = int(rows["offset"][min(chosen, len(rows) - 1)])
        return str(self.split.paths[shard]), offset, int(rng.integers(2**62))

    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards as they follow one another in an epoch, and where each begins, in groups."""
        shards = self._rng("shards", epoch).permutation(len(self.split.paths))
        return shards, np.concatenate([[0], np.cumsum(self.split.groups[shards])])

    def _block_order(self, epoch: int, stream: int, block: int) -> np.ndarray:
        """The groups of a block in their new order, counted from its first one."""
        size = min(self.block, self.stream_length - block * self.block)
        return self._rng("block", epoch, stream, block).permutation(size)

    def _rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((self.shard.seed, PURPOSES.index(purpose), *numbers))


class EvaluationPipeline(Counted):
    """Every record once, in order, in equally many batches on every process.

    Batches carry `mask`, 0 for padding, and `index`, the record's number.

    Args:
      split: What to read.
      shard: The part that this process supplies.
      decode: Makes one example; its seed is 0.
      workers: Examples decoded at the same time; 0 leaves it to tf.data.
    """

    def __init__(self, split: Split, shard: DataShard, decode: Decode, *, workers: int = 0) -> None:
        super().__init__(shard)
        self.split, self.decode, self.workers = split, decode, workers
        self.items = [
            (str(path), int(offset))
            for number, path in enumerate(split.paths)
            for offset in split.index(number)["offset"]
        ]

    def epoch_examples(self) -> int:
        """Number of records."""
        return len(self.items)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the current position on.

        Raises:
          DataError: naming the file that is missing or damaged.
        """
        local, total = self.shard.local_batch_size, len(self.items)
        starts = np.arange(self._position, total, self.shard.batch_size) + self.shard.index * local
        numbers = (starts[:, None] + np.arange(local)).ravel()
        if not len(numbers):
            return
        paths, offsets = zip(*(self.items[min(number, total - 1)] for number in numbers), strict=True)
        dataset = tf.data.Dataset.from_tensor_slices(
            (list(paths), np.array(offsets), (numbers < total).astype(np.int32), numbers.astype(np.int32))
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
        for batch in _batches(
            dataset.batch(local, drop_remainder=True).prefetch(1),
            lambda: [(*item, 0) for item in self.items[self._position : self._position + self.shard.batch_size]],
            self.decode,
        ):
            self._position += self.shard.batch_size
            yield batch


_open: weakref.WeakSet[Iterator[dict[str, np.ndarray]]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # TensorFlow's threads call Python: a reader that outlives the interpreter never ends, and nor does the interpreter.
    for batches in list(_open):
        with suppress(ValueError):  # another thread is in it
            batches.close()


def _batches(
    dataset: tf.data.Dataset, places: Callable[[], list[tuple[str, int, int]]], decode: Decode
) -> Iterator[dict[str, np.ndarray]]:
    """The data set's batches; a damaged file is named in the error.

    Args:
      dataset: In the order of the records.
      places: Path, offset and seed of the records of the batch that comes next.
      decode: What the data set does with each of them.
    """
    batches = _read(dataset, places, decode)
    _open.add(batches)
    return batches


def _read(
    dataset: tf.data.Dataset, places: Callable[[], list[tuple[str, int, int]]], decode: Decode
) -> Iterator[dict[str, np.ndarray]]:
    iterator = dataset.as_numpy_iterator()
    while True:
        failure = None
        try:
            batch = next(iterator, None)
        except tf.errors.OpError as error:
            failure = error
        if failure is not None:
            # The error would keep the iterator, and its threads, as long as somebody keeps the error.
            traceback.clear_frames(failure.__traceback__)
            del iterator
            problem = records.find_damage([place[:2] for place in places()]) or _find_undecodable(places(), decode)
            raise DataError(problem) if problem else failure
        if batch is None:
            return
        yield batch


def _find_undecodable(places: Iterable[tuple[str, int, int]], decode: Decode) -> str | None:
    """Says which of some records, whole as they are, is the first whose content cannot be decoded."""
    for path, offset, seed in places:
        try:
            decode(records.read_record(tf.constant(path), tf.constant(offset, tf.int64)), tf.constant(seed, tf.int64))
        except (tf.errors.InvalidArgumentError, DataError) as error:
            reason = records.plain(error)
            return f"{path}: cannot decode the record at byte {offset} ({reason}); delete the shard and make it again"
        except Exception:
            return None  # no matter of the data: the first error stands
    return None

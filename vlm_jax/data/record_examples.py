"""Examples in TFRecord files: splits, indices, and reading and decoding by tf.data."""

import atexit
import functools
import itertools
import traceback
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data import records
from vlm_jax.data.order import Place
from vlm_jax.data.protocol import PROTOCOL, read_protocol
from vlm_jax.errors import DataError

Decode = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
"""(serialised record, seed of this example in this epoch) -> arrays of one example."""
Stretch = Callable[[tf.Tensor], tuple[str, float, float]]
"""Serialised record -> (name of its video, start and end of the part that it holds, seconds)."""


class Split:
    """Files of one split and positions of its records.

    Args:
      directory: Folder of the data set.
      split: Name of the split.

    Attributes:
      protocol: Statements of the data set by key.
      groups: Number of groups per shard, int64 `[S]`.
      records: Number of records per shard, int64 `[S]`.
      paths: Files of records, one per shard.

    Raises:
      DataError: if the data set or the split is missing.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        content = read_protocol(directory)
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
        """Return the index of one shard, one row per record.

        Raises:
          DataError: if it cannot be read or does not fit the data set.
        """
        return self._read(shard)[0]

    def group(self, shard: int, number: int) -> np.ndarray:
        """Return the index rows of one group of a shard, counted from 0. Raises as `index` does."""
        index, starts = self._read(shard)
        return index[starts[number] : starts[number + 1]]

    def places(self) -> list[tuple[str, int]]:
        """Return path and offset of every record, in order. Raises as `index` does."""
        return [(str(path), int(offset)) for n, path in enumerate(self.paths) for offset in self.index(n)["offset"]]

    def _read_shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        index = records.read_index(self.paths[shard])
        starts = np.append(np.flatnonzero(np.diff(index["group"], prepend=-1)), len(index))
        found = len(index), len(starts) - 1
        expected = int(self.records[shard]), int(self.groups[shard])
        if found != expected:
            raise DataError(
                f"{records.index_path(self.paths[shard])}: {found[0]} records in {found[1]} groups, "
                f"{PROTOCOL} says {expected[0]} in {expected[1]}; run the preparation again"
            )
        return index, starts


class RecordSource(NamedTuple):
    """Split whose records are decoded to examples.

    Attributes:
      split: Split to read.
      decode: Function that makes one example; the examples of several sources have the same names and types.
      stretch: Function that returns the part of a video that a record holds; None if records are not parts of videos.
    """

    split: Split
    decode: Decode
    stretch: Stretch | None = None


class RecordReference(NamedTuple):
    """Position of a record, seed of its augmentation, and number of the source that decodes it."""

    path: str
    offset: int
    seed: int
    source: int


References = Callable[[int], list[RecordReference]]
"""Number of a batch -> the records of this process's part of it."""


class RecordExamples:
    """Records of one or several sources; training draws one record per group by weight, evaluation visits all records.

    Args:
      sources: Sources to read.
      workers: Number of examples decoded in parallel; 0 leaves the choice to tf.data.
    """

    def __init__(self, *sources: RecordSource, workers: int = 0) -> None:
        self.name = f"data {' + '.join(str(source.split.directory) for source in sources)}"
        self.sources, self.workers = sources, workers
        self.sizes = [source.split.groups for source in sources]
        self.num_items = sum(int(source.split.records.sum()) for source in sources)

    def locate(self, place: Place) -> RecordReference:
        """Draw a record of a group by weight.

        Raises:
          DataError: if an index is missing or damaged.
        """
        split, rng = self.sources[place.source].split, np.random.default_rng(place.seed)
        rows = split.group(place.shard, place.group)
        cumulative = np.cumsum(rows["weight"])
        chosen = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        offset = int(rows["offset"][min(chosen, len(rows) - 1)])
        return RecordReference(str(split.paths[place.shard]), offset, int(rng.integers(2**62)), place.source)

    def item(self, number: int) -> RecordReference:
        """Return a record by its number; its seed is 0. Raises DataError as `locate` does."""
        path, offset, source = self._items[number]
        return RecordReference(path, offset, 0, source)

    @functools.cached_property
    def _items(self) -> list[tuple[str, int, int]]:
        places = ((source.split.places(), number) for number, source in enumerate(self.sources))
        return [(*place, number) for own, number in places for place in own]

    def read(self, references: References, first: int, last: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Yield the decoded examples of every batch, stacked.

        Raises:
          DataError: naming the file that is missing or damaged.
        """
        batches = _read(self, references, first, last)
        _open.add(batches)
        return batches

    def dataset(self, references: References, first: int, last: int | None) -> tf.data.Dataset:
        """Return the batches of `read` as a `tf.data.Dataset`."""
        types = (tf.string, tf.int64, tf.int64, tf.int32)

        def plan(batch: np.int64) -> list[np.ndarray]:
            columns = zip(*references(int(batch)), strict=True)
            return [np.array(column, kind.as_numpy_dtype) for column, kind in zip(columns, types, strict=True)]

        # Not from_generator: with it, TensorFlow returns freed memory at once, which costs a quarter of the speed.
        batches = tf.data.Dataset.counter(first) if last is None else tf.data.Dataset.range(first, last)
        local = len(references(first))
        planned = batches.map(
            lambda batch: tuple(tf.ensure_shape(part, [local]) for part in tf.numpy_function(plan, [batch], types))
        )
        decoded = planned.unbatch().map(
            lambda *reference: self.decode(*reference),
            num_parallel_calls=self.workers or tf.data.AUTOTUNE,
            deterministic=True,
        )
        return decoded.batch(local, drop_remainder=True).prefetch(2)

    def decode(self, path: tf.Tensor, offset: tf.Tensor, seed: tf.Tensor, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """Read and decode one record by the function of its source."""
        serialised = records.read_record(path, offset)
        if len(self.sources) == 1:
            return self.sources[0].decode(serialised, seed)
        return tf.switch_case(source, [functools.partial(own.decode, serialised, seed) for own in self.sources])

    def bytes_per_hour(self, sample: int = 8) -> float | None:
        """Return the disk use of an hour of video in bytes, measured on the first `sample` shards of each source.

        It is None if no source has records that are parts of videos.
        """
        size, seconds, video, reached = 0, 0.0, "", 0.0
        for source in self.sources:
            for path in source.split.paths[:sample] if source.stretch else ():
                size += path.stat().st_size
                for serialised in tf.data.TFRecordDataset(str(path)):
                    name, begin, end = source.stretch(serialised)
                    # Neighbours overlap; what both hold is counted once.
                    begin = max(begin, reached) if name == video else begin
                    seconds += max(0.0, end - begin)
                    video, reached = name, end
        return size / seconds * 3600 if seconds else None


_open: weakref.WeakSet[Iterator[dict[str, np.ndarray]]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # TensorFlow's threads call Python. A reader that is still open at exit would keep the interpreter from ending.
    for batches in list(_open):
        with suppress(ValueError):  # another thread is reading from it
            batches.close()


def _read(
    examples: RecordExamples, references: References, first: int, last: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches as `RecordExamples.read` does."""
    iterator = examples.dataset(references, first, last).as_numpy_iterator()
    for number in itertools.count(first):
        failure = None
        try:
            batch = next(iterator, None)
        except tf.errors.OpError as error:
            failure = error
        if failure is not None:
            # The error's frames would keep the iterator and its threads alive as long as the error is.
            traceback.clear_frames(failure.__traceback__)
            del iterator
            places = references(number)
            problem = records.find_damage([place[:2] for place in places]) or _find_undecodable(examples, places)
            raise DataError(problem) if problem else failure
        if batch is None:
            return
        yield batch


def _find_undecodable(examples: RecordExamples, places: Iterable[RecordReference]) -> str | None:
    """Return one line that names the first of these records whose content cannot be decoded; None if all can."""
    for path, offset, seed, source in places:
        try:
            serialised = records.read_record(tf.constant(path), tf.constant(offset, tf.int64))
            examples.sources[source].decode(serialised, tf.constant(seed, tf.int64))
        except (tf.errors.InvalidArgumentError, DataError) as error:
            reason = records.plain(error)
            return f"{path}: cannot decode the record at byte {offset} ({reason}); delete the shard and make it again"
        except Exception:
            return None  # the data are not the cause, so the caller raises the first error
    return None


def read_features(split: Split, features: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield some features of every record of a split, in order; the bytes of all others are not read.

    Args:
      split: Split to read.
      features: TFDS features by name.

    Raises:
      DataError: if a record is damaged.
    """
    wanted = tfds.features.FeaturesDict(features)
    for number, path in enumerate(split.paths):
        with open(path, "rb") as file:
            for offset in split.index(number)["offset"]:
                yield wanted.deserialize_example_np(_read_parts(file, path, int(offset), features))


def _read_parts(file: BinaryIO, path: Path, offset: int, names: Container[str]) -> bytes:
    """Return a serialised example that has only the features of the given names.

    A TFRecord has 12 bytes before an example. An example has one field, a map of features. Every entry of the map is a
    field, whose key comes first. Fields consist of tag, length and content (wire format of protocol buffers).
    """

    def enter() -> int:
        """Read tag and length of the field that begins here, and return the position of its end, bytes."""
        tag, length, shift = file.read(1), 0, 0
        while tag == b"\n":
            (byte,) = file.read(1) or b"\0"
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return file.tell() + length
        raise DataError(f"{path}: no undamaged record at byte {offset}; delete the shard and run the preparation again")

    file.seek(offset + 12)
    end, kept = enter(), tf.train.Example()
    while file.tell() < end:
        begin, last = file.tell(), enter()
        if file.read(enter() - file.tell()).decode() in names:
            file.seek(begin)
            kept.features.MergeFromString(file.read(last - begin))
        file.seek(last)
    return kept.SerializeToString()

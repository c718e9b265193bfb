"""Order of training examples, computed in numpy: which example has which slot of which batch.

A source is a list of shards with known numbers of examples. Every epoch permutes the shards and concatenates their
examples into one sequence, which is cut into `streams` equal parts. Stream r supplies the r-th part of every batch.
Within a stream, disjoint blocks of `block` examples are permuted. The order depends only on the seed and the batch,
not on the number of processes.

Several sources without weights are concatenated, so that an epoch visits each example once. Sources with weights are
each visited in epochs of their own. A fixed periodic pattern then decides which source supplies the n-th example of a
stream, and thereby how many examples each source has supplied before it. In both cases, a position is one integer.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vlm_jax.errors import DataError
from vlm_jax.types import DataShard

PURPOSES = ("shards", "block", "example")
"""Purposes of random numbers; each has an independent sequence."""


class Place(NamedTuple):
    """Training example and the seed of its random numbers.

    Attributes:
      number: Number of the example, counted over all shards of all sources.
      source: Number of its source.
      shard: Number of its shard within the source.
      group: Number of the example within the shard.
      seed: Seed for `numpy.random.default_rng`, different in every epoch.
    """

    number: int
    source: int
    shard: int
    group: int
    seed: tuple[int, ...]


class Order(Protocol):
    """Endless sequence of batches.

    Attributes:
      batches: Number of batches per epoch.
    """

    batches: int

    def place(self, batch: int, slot: int) -> Place:
        """Return the example at one slot of a batch, which is counted from the beginning of the run."""


class StreamOrder:
    """Order by streams, with every example once per epoch or with sources mixed by weight.

    Args:
      sizes: Number of examples per shard, for every source.
      shard: Batch size and seed.
      streams: Number of streams, a divisor of the batch size.
      block: Number of consecutive examples of a stream that are permuted together; 0 permutes the whole stream.
      weights: Relative number of examples per source, small integers; empty visits each example once per epoch.
      name: Name of the data in error messages.

    Attributes:
      batches: Number of batches per epoch. With weights, an epoch has about as many examples as all sources together,
        and the sources' shares are exact if the epoch is long enough.

    Raises:
      DataError: if the streams or weights do not fit, or an epoch is shorter than a batch.
    """

    def __init__(
        self,
        sizes: Sequence[np.ndarray],
        shard: DataShard,
        *,
        streams: int = 1,
        block: int = 0,
        weights: Sequence[int] = (),
        name: str = "data",
    ) -> None:
        if weights and (len(weights) != len(sizes) or min(weights) < 1):
            raise DataError(f"{name}: weights {list(weights)}, expected {len(sizes)} positive integers, one per source")
        self._groups, self._seed = _Groups(sizes, shard.seed), shard.seed
        self._per_stream, total = shard.batch_size // streams, self._groups.total
        weighted = len(weights) > 1
        parts = sizes if weighted else [np.concatenate(sizes)]
        settings = {"streams": streams, "block": block, "rotate": weighted}
        self._parts = [_Part(np.asarray(part), shard.seed, number, **settings) for number, part in enumerate(parts)]
        self.batches = total // shard.batch_size if weighted else self._parts[0].stream_length // self._per_stream
        if not self.batches:
            raise DataError(
                f"{name}: {total} examples an epoch over {streams} streams do not fill a batch of {shard.batch_size}"
            )
        self._pattern = np.zeros(0, np.int64)
        if weighted:
            for number, part in enumerate(self._parts):
                if not part.stream_length:
                    raise DataError(f"{name}: source {number} has fewer examples than there are streams ({streams})")
            self._pattern = spread(weights)
            period = len(self._pattern)
            self._phases = [stream * period // streams for stream in range(streams)]
            # Row n: for each source, its number of the first n places of a period.
            chosen = self._pattern[:, None] == np.arange(len(weights))
            self._before = np.concatenate([np.zeros((1, len(weights)), np.int64), np.cumsum(chosen, 0)])
            step = period // np.gcd(period, self._per_stream)
            if self.batches >= step:
                self.batches -= int(self.batches % step)

    def place(self, batch: int, slot: int) -> Place:
        """Return the example at one slot of a batch, which is counted from the beginning of the run."""
        stream, within = divmod(slot, self._per_stream)
        if not len(self._pattern):
            epoch, batch = divmod(batch, self.batches)
            shard, group = self._parts[0].find(epoch, stream, batch * self._per_stream + within)
            return self._groups.place(shard, group, epoch)
        source, count = self._source(stream, batch * self._per_stream + within)
        part = self._parts[source]
        epoch, number = divmod(count, part.stream_length)
        shard, group = part.find(epoch, stream, number)
        return self._groups.place(self._groups.first_shards[source] + shard, group, epoch)

    def _source(self, stream: int, number: int) -> tuple[int, int]:
        """Return the source of the n-th example of a stream, and the number of examples the source supplied before."""
        period, phase = len(self._pattern), self._phases[stream]
        periods, rest = divmod(number + phase, period)
        source = int(self._pattern[rest])
        before = self._before[:, source]
        return source, int(periods * before[period] + before[rest] - before[phase])


class DistinctOrder:
    """Order in which every batch is drawn independently, and no two of its examples have the same key.

    Args:
      sizes: Number of examples per shard, for every source.
      shard: Batch size and seed.
      keys: Key of every example, int64 `[N]`.
      name: Name of the data in error messages.

    Attributes:
      batches: Number of batches per epoch: the number of examples divided by the batch size, rounded down.

    Raises:
      DataError: if there are fewer distinct keys than a batch has examples.
    """

    def __init__(self, sizes: Sequence[np.ndarray], shard: DataShard, keys: np.ndarray, *, name: str = "data") -> None:
        self._groups, self._shard, self._keys = _Groups(sizes, shard.seed), shard, np.asarray(keys)
        if len(keys) != self._groups.total:
            raise ValueError(f"{name}: {len(keys)} keys for {self._groups.total} examples")
        count = len(np.unique(self._keys))
        if count < shard.batch_size:
            raise DataError(f"{name}: {count} distinct examples do not fill a batch of {shard.batch_size}")
        self.batches = len(keys) // shard.batch_size
        self._batch = functools.lru_cache(maxsize=4)(self._draw)

    def place(self, batch: int, slot: int) -> Place:
        """Return the example at one slot of a batch, which is counted from the beginning of the run."""
        return self._groups.place(*self._groups.find(int(self._batch(batch)[slot])), batch)

    def _draw(self, batch: int) -> np.ndarray:
        rng = np.random.default_rng((self._shard.seed, batch))
        drawn = rng.choice(len(self._keys), self._shard.batch_size, replace=False)
        seen: set[int] = set()
        for slot in range(len(drawn)):
            while int(self._keys[drawn[slot]]) in seen:
                drawn[slot] = rng.integers(len(self._keys))
            seen.add(int(self._keys[drawn[slot]]))
        return drawn


def spread(weights: Sequence[int]) -> np.ndarray:
    """Return one period of sources, each as often as its weight and spread evenly: (3, 1) -> [0, 0, 1, 0]."""
    shares = np.asarray(weights, np.int64)
    shares = shares // np.gcd.reduce(shares)
    credit, pattern = np.zeros_like(shares), np.zeros(int(shares.sum()), np.int64)
    for place in range(len(pattern)):
        credit += shares
        pattern[place] = credit.argmax()
        credit[pattern[place]] -= len(pattern)
    return pattern


class _Part:
    """Shards that are permuted together: those of one weighted source, or of all sources without weights."""

    def __init__(self, sizes: np.ndarray, seed: int, number: int, *, streams: int, block: int, rotate: bool) -> None:
        self.sizes, self.total = sizes, int(sizes.sum())
        self.stream_length = self.total // streams
        # Streams of equal length leave a remainder out of each epoch. Without rotation, a source of one shard would
        # always leave out its last examples.
        self.rotation = self.total % streams if rotate else 0
        self.block, self._entropy = block or max(self.stream_length, 1), (seed, len(PURPOSES) * number)
        self._shards = functools.lru_cache(maxsize=2)(self._shard_order)
        self._block = functools.lru_cache(maxsize=2 * streams)(self._block_order)

    def find(self, epoch: int, stream: int, number: int) -> tuple[int, int]:
        """Return the shard of the n-th example of a stream in an epoch, and its group within the shard."""
        block, within = divmod(number, self.block)
        place = stream * self.stream_length + block * self.block + int(self._block(epoch, stream, block)[within])
        place = (place + epoch * self.rotation) % self.total
        shards, bounds = self._shards(epoch)
        slot = int(np.searchsorted(bounds, place, side="right")) - 1
        return int(shards[slot]), place - int(bounds[slot])

    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in their order in an epoch, and the first example of each."""
        shards = self._rng("shards", epoch).permutation(len(self.sizes))
        return shards, np.concatenate([[0], np.cumsum(self.sizes[shards])])

    def _block_order(self, epoch: int, stream: int, block: int) -> np.ndarray:
        """Return the permuted examples of a block, counted from its first one."""
        size = min(self.block, self.stream_length - block * self.block)
        return self._rng("block", epoch, stream, block).permutation(size)

    def _rng(self, purpose: str, *numbers: int) -> np.random.Generator:
        seed, first = self._entropy
        return np.random.default_rng((seed, first + PURPOSES.index(purpose), *numbers))


class _Groups:
    """Examples of all sources, numbered consecutively."""

    def __init__(self, sizes: Sequence[np.ndarray], seed: int) -> None:
        self._seed = seed
        self.first_shards = np.cumsum([0, *map(len, sizes)]).tolist()
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
        self.total = int(self._starts[-1])

    def find(self, number: int) -> tuple[int, int]:
        """Return the shard of an example, counted over all sources, and its group within the shard."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def place(self, shard: int, group: int, epoch: int) -> Place:
        """Return the place of an example by its shard, counted over all sources."""
        source = int(np.searchsorted(self.first_shards, shard, side="right")) - 1
        own = shard - self.first_shards[source]
        purpose = len(PURPOSES) * source + PURPOSES.index("example")
        return Place(int(self._starts[shard]) + group, source, own, group, (self._seed, purpose, epoch, own, group))

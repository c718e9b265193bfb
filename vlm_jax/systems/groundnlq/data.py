"""GroundNLQ's records, and the batches that training and evaluation make of them.

Clips and questions are two data sets, each record a clip or a question. Both are held in memory; labels are worked out
on the host in float64. Rules of houzhijian/GroundNLQ, `libs/datasets`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from vlm_jax.data.feature_store import FeatureStore, read_records, tensor
from vlm_jax.data.pipeline import Counted, Split
from vlm_jax.data.protocol import check_protocol
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq.point_labels import RANGES, assign, points
from vlm_jax.types import DataShard

KIND = "nlq_queries"
QUERY_KINDS = ("nlq", "narration", "nlq_narration")
"""What a question may be. The reference's script writes the last one, its loader reads the other two."""
PURPOSES = ("order", "jitter")
"""What random numbers are drawn for, each with a sequence of its own."""
JITTER_SCALES = 10
"""A jittered target is up to so many times as long."""


def query_features(dtype: str = "float32") -> tfds.features.FeaturesDict:
    """A question: its name, its clip, kind and text, seconds of the clip, start and end of what answers it in seconds
    `[M, 2]` (none where that is not published), and features of its words `[L, C]`."""
    texts = {name: tfds.features.Text() for name in ("qid", "clip", "kind", "text")}
    numbers = {"duration": tensor(), "spans": tensor(None, 2), "tokens": tensor(None, None, dtype=dtype)}
    return tfds.features.FeaturesDict(texts | numbers)


@dataclasses.dataclass(frozen=True)
class Rules:
    """How batches are made of clips and questions.

    Attributes:
      video_dim: C of a clip's features.
      text_dim: C of a word's.
      max_tokens: L that questions are padded to.
      max_length: Positions that the model takes at most.
      buckets: Lengths that batches are padded to, multiples of the last level's stride; the last one is `max_length`.
      ranges: Of the levels, see `point_labels.points`.
      radius: See `point_labels.assign`.
      feature_stride: Frames from one position to the next.
      fps: Frames per second.
      groups: Parts of a batch that the reference's processes padded by themselves.
      jitter: Whether training moves and stretches targets at random.
      reference_batch: Questions that the reference evaluates at the same time.
    """

    video_dim: int = 2304
    text_dim: int = 512
    max_tokens: int = 32
    max_length: int = 2560
    buckets: tuple[int, ...] = (2560,)
    ranges: tuple[tuple[float, float], ...] = RANGES
    radius: float = 1.5
    feature_stride: float = 16.043
    fps: float = 30.0
    groups: int = 1
    jitter: bool = False
    reference_batch: int = 16

    @property
    def last_stride(self) -> int:
        """Positions from one point of the last level to the next."""
        return 2 ** (len(self.ranges) - 1)

    def bucket(self, longest: int) -> int:
        """What a batch is padded to whose longest clip has so many positions.

        The convolutions of every level must see one position of padding, as in the reference's full one; so a shorter
        bucket is as exact only if it leaves the last level's stride free.
        """
        fitting = [size for size in self.buckets if longest + self.last_stride <= size]
        return min(fitting, default=self.max_length)


@dataclasses.dataclass(frozen=True)
class Query:
    """A question.

    Attributes:
      qid: Its name.
      clip: Its clip's.
      text: The question.
      duration: Of the clip, seconds.
      spans: float64 `[M, 2]`, seconds; M may be 0.
      tokens: `[L, C]`.
    """

    qid: str
    clip: str
    text: str
    duration: float
    spans: np.ndarray
    tokens: np.ndarray


class Window(NamedTuple):
    """A stretch of a question's clip: which question, the first position, and how many."""

    query: int
    start: int
    length: int


def load_queries(directory: str, splits: str, rules: Rules, source: str = "") -> list[Query]:
    """The questions of a split, or of several joined by '+', in their order.

    Args:
      directory: Made by data_prep.
      splits: Such as 'train' or 'train+validation'.
      rules: Sizes.
      source: What the words' features have to be made with; '' are released ones.

    Raises:
      DataError: for a data set that is missing, damaged or was made otherwise; for a question of an unknown kind or
        longer than `rules.max_tokens`.
    """
    queries = []
    for name in splits.split("+"):
        split = Split(directory, name)
        check_protocol(directory, split.protocol, {"kind": KIND, "text_dim": rules.text_dim, "text_source": source})
        for record in read_records(split, query_features(split.protocol["dtype"])):
            texts = (record[key].decode() for key in ("qid", "clip", "text"))
            query = Query(*texts, float(record["duration"]), record["spans"], record["tokens"])
            kind = record["kind"].decode()
            if kind not in QUERY_KINDS:
                raise DataError(
                    f"data {directory}: question {query.qid} is a {kind!r}, not one of {', '.join(QUERY_KINDS)}"
                )
            _check_tokens(query, rules, f"data {directory}")
            queries.append(query)
    return queries


def positions(seconds: np.ndarray, rules: Rules) -> np.ndarray:
    """Seconds as positions, float64. The reference adds half a feature's length only on the way back."""
    return np.asarray(seconds, np.float64) * rules.fps / rules.feature_stride


def jittered(spans: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Targets moved and stretched, in the same unit: `[M, 2]`; they may leave the clip.

    Args:
      spans: `[M, 2]`.
      draws: `[M, 2]`: a whole number s from 1 to 10, and u in [-1, 1]. The middle moves by up to (s - 1) / 2 lengths,
        the length becomes s times as much, so that what was there stays within.
    """
    spans, (scale, shift) = np.asarray(spans, np.float64).reshape(-1, 2), np.asarray(draws, np.float64).T
    length, middle = spans[:, 1] - spans[:, 0], (spans[:, 0] + spans[:, 1]) / 2
    middle = middle - shift * (scale - 1) * length / 2
    return np.stack([middle - scale * length / 2, middle + scale * length / 2], 1)


def windows(queries: Sequence[Query], store: FeatureStore, max_length: int) -> list[Window]:
    """What evaluation shows of every question's clip: all of it, or, of a longer one, stretches that overlap by half
    or more."""
    found = []
    for number, query in enumerate(queries):
        length = store.length(query.clip)
        last = max(length - max_length, 0)
        for start in [*range(0, last, max_length // 2), last]:
            found.append(Window(number, start, min(length, max_length)))
    return found


class TrainPipeline(Counted):
    """Endless full batches of questions with their clips and targets.

    Every epoch is a permutation of all questions, cut into batches; what does not fill one is left out. The order and
    the jitter hang on the seed and the position alone, not on the number of processes.

    Raises:
      DataError: where there are fewer questions than a batch takes, a clip is longer than the model takes, or a
        question has no answer.
    """

    def __init__(self, queries: Sequence[Query], store: FeatureStore, rules: Rules, shard: DataShard) -> None:
        super().__init__(shard)
        self.queries, self.store, self.rules = queries, store, rules
        if len(queries) < shard.batch_size:
            raise DataError(f"data: {len(queries)} questions do not fill a batch of {shard.batch_size}")
        store.load(query.clip for query in queries)
        for query in queries:
            if store.length(query.clip) > rules.max_length:
                raise DataError(
                    f"data {store.directory}: clip {query.clip} has {store.length(query.clip)} positions, training "
                    f"takes up to {rules.max_length} (config.model.max_length); cut it, or leave its questions out"
                )
            if not len(query.spans):
                raise DataError(f"data: question {query.qid} has no answer to train on; is this a test split?")
        self._lengths = np.array([store.length(query.clip) for query in queries])
        self._tokens = np.array([len(query.tokens) for query in queries])

    def epoch_examples(self) -> int:
        """Examples of one epoch; the remainder that fills no batch is dropped."""
        return len(self.queries) // self.shard.batch_size * self.shard.batch_size

    def plan(self, batch: int) -> tuple[int, np.ndarray]:
        """The epoch of a batch, counted from the run's start, and the numbers of its questions."""
        epoch, within = divmod(batch, len(self.queries) // self.shard.batch_size)
        order = _permutation(self.shard.seed, epoch, len(self.queries))
        return epoch, order[within * self.shard.batch_size :][: self.shard.batch_size]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the current position on.

        They hold `video` `[B, T, C]` and `text` `[B, L, C]` with `video_mask` and `text_mask`, `extent` `[B, L]`
        (before the end of the longest question of the example's group), and for every point, level after level,
        `class_targets` `[B, P, 1]` and `offset_targets` `[B, P, 2]`.
        """
        local = self.shard.local_batch_size
        while True:
            epoch, numbers = self.plan(self._position // self.shard.batch_size)
            bucket = self.rules.bucket(int(self._lengths[numbers].max()))
            longest = self._tokens[numbers].reshape(self.rules.groups, -1).max(1)
            extents = np.repeat(longest, len(numbers) // self.rules.groups)
            own = slice(self.shard.index * local, (self.shard.index + 1) * local)
            parts = [self._targets(epoch, number, bucket) for number in numbers[own]]
            classes, offsets = (np.stack(part) for part in zip(*parts, strict=True))
            queries = [self.queries[number] for number in numbers[own]]
            videos = [self.store[query.clip] for query in queries]
            self._position += self.shard.batch_size
            yield _inputs(videos, [query.tokens for query in queries], extents[own], bucket, self.rules) | {
                "class_targets": classes,
                "offset_targets": offsets.astype(np.float32),
            }

    def _targets(self, epoch: int, number: int, bucket: int) -> tuple[np.ndarray, np.ndarray]:
        spans = self.queries[number].spans
        if self.rules.jitter:
            rng = np.random.default_rng((self.shard.seed, PURPOSES.index("jitter"), epoch, int(number)))
            draws = rng.integers(1, JITTER_SCALES + 1, len(spans)), rng.uniform(-1, 1, len(spans))
            spans = jittered(spans, np.stack(draws, 1))
        return assign(_points(bucket, self.rules.ranges), positions(spans, self.rules), radius=self.rules.radius)


class EvaluationPipeline(Counted):
    """Every window of every question once, shortest bucket first, in equally many batches on every process.

    Batches carry what training's do but targets, and `duration` `[B]` (seconds from the window's beginning to the
    clip's end), `mask`, 0 for padding, and `index`, the window's number. `extent` goes by the reference's batches:
    consecutive questions of the file, whatever the batch size here.
    """

    def __init__(self, queries: Sequence[Query], store: FeatureStore, rules: Rules, shard: DataShard) -> None:
        super().__init__(shard)
        self.queries, self.store, self.rules = queries, store, rules
        store.load(query.clip for query in queries)
        self.windows = windows(queries, store, rules.max_length)
        self._buckets = np.array([rules.bucket(window.length) for window in self.windows], int)
        self._order = np.argsort(self._buckets, kind="stable")
        tokens = np.array([len(query.tokens) for query in queries], int)
        starts = np.arange(0, len(queries), rules.reference_batch)
        longest = np.maximum.reduceat(tokens, starts) if len(queries) else tokens
        self._extents = np.repeat(longest, rules.reference_batch)[: len(queries)]

    def epoch_examples(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the current position on."""
        size, local, rules = self.shard.batch_size, self.shard.local_batch_size, self.rules
        while self._position < len(self.windows):
            whole = self._order[self._position :][:size]
            bucket = int(self._buckets[whole].max())
            mask = self._position + self.shard.index * local + np.arange(local) < len(self.windows)
            own = np.resize(whole, size)[self.shard.index * local :][:local]
            shown = [self.windows[number] for number in own]
            queries = [self.queries[window.query] for window in shown]
            videos = [
                self.store[query.clip][window.start :][: window.length]
                for query, window in zip(queries, shown, strict=True)
            ]
            extents = self._extents[[window.query for window in shown]]
            begins = np.array([window.start for window in shown]) * rules.feature_stride / rules.fps
            durations = np.array([query.duration for query in queries]) - begins
            self._position += size
            yield _inputs(videos, [query.tokens for query in queries], extents, bucket, rules) | {
                "duration": durations.astype(np.float32),
                "mask": mask.astype(np.int32),
                "index": own.astype(np.int32),
            }


def _check_tokens(query: Query, rules: Rules, place: str) -> None:
    count = len(query.tokens)
    if not 0 < count <= rules.max_tokens:
        raise DataError(
            f"{place}: question {query.qid} has {count} words' features, expected 1 to {rules.max_tokens} "
            "(config.text.max_tokens)"
        )


def _inputs(
    videos: Iterable[np.ndarray], tokens: Iterable[np.ndarray], extents: np.ndarray, bucket: int, rules: Rules
) -> dict[str, np.ndarray]:
    """Padded features and their masks."""
    video, video_mask = _padded(list(videos), bucket, rules.video_dim)
    text, text_mask = _padded(
        [part.astype(np.float32, copy=False) for part in tokens], rules.max_tokens, rules.text_dim
    )
    extent = np.arange(rules.max_tokens) < extents[:, None]
    return {"video": video, "video_mask": video_mask, "text": text, "text_mask": text_mask, "extent": extent}


def _padded(arrays: Sequence[np.ndarray], length: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """`[t, C]` each -> `[B, length, C]`, and which positions exist."""
    out = np.zeros((len(arrays), length, dim), arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out, np.arange(length) < np.array([[len(array)] for array in arrays])


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, PURPOSES.index("order"), epoch)).permutation(count)


@functools.lru_cache(maxsize=16)
def _points(length: int, ranges: tuple[tuple[float, float], ...]) -> np.ndarray:
    return points(length, ranges)

"""CTRL's records, and the batches that training and evaluation make of them.

Windows and sentences are two data sets, each record a video or a sentence. Both are held in memory: pairs, offsets and
context are worked out from them, so thresholds may change without another preparation.
"""

import dataclasses
from collections.abc import Container, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from vlm_jax.data.feature_store import read_records
from vlm_jax.data.pipeline import Counted, Split
from vlm_jax.data.protocol import check_protocol
from vlm_jax.errors import DataError
from vlm_jax.systems.ctrl import windows
from vlm_jax.types import DataShard


def _tensor(*shape: int | None, dtype: type = np.float64) -> tfds.features.Tensor:
    # As bytes: the only form for several unknown sizes, and the only one that keeps float64.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


WINDOW_FEATURES = tfds.features.FeaturesDict(
    {
        "video": tfds.features.Text(),
        "fps": _tensor(),
        "num_frames": _tensor(dtype=np.int64),
        "spans": _tensor(None, 2, dtype=np.int64),
        "features": _tensor(None, None, dtype=np.float32),
    }
)
"""A video: the first and last frame of its W windows, in the order of their files' names, and their features `[W, C]`;
fps and num_frames are 0 where they are not known."""
QUERY_FEATURES = tfds.features.FeaturesDict(
    {"qid": tfds.features.Text(), "video": tfds.features.Text(), "text": tfds.features.Text()}
    | {"vector": _tensor(None, dtype=np.float32), "span": _tensor(2), "fps": _tensor()}
)
"""A sentence: its name, vector `[S]`, and the first and last frame of what it describes; fps is 0 where it is not
known."""
WINDOWS = "windows"
"""The split that holds all windows of a data set."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How samples are made of windows and sentences.

    Attributes:
      visual_dim: Of a window with its context, three times that of its own features.
      sentence_dim: Of a sentence's vector.
      min_overlap: Of a pair, see `windows.select_pairs`.
      max_outside: The same.
      context_num: Stretches on each side, see `windows.context`.
      context_size: Frames of a stretch.
      context: `exact` or `nearest`.
      unique_clips: No moment twice in a batch.
      video_source: What the windows' features were made with, as their preparation states it; '' for released files.
      text_source: The same of the sentences' vectors.
    """

    visual_dim: int
    sentence_dim: int
    min_overlap: float = 0.5
    max_outside: float = 0.15
    context_num: int = 1
    context_size: int = 128
    context: str = windows.EXACT
    unique_clips: bool = False
    video_source: str = ""
    text_source: str = ""

    def __post_init__(self) -> None:
        if self.context not in windows.CONTEXTS:
            raise DataError(f"context: {self.context!r} is not one of {', '.join(windows.CONTEXTS)}")


@dataclasses.dataclass(frozen=True)
class Video:
    """The windows of a video.

    Attributes:
      name: Its name.
      fps: Frames per second, 0 where it is not known.
      spans: int64 `[W, 2]`, frames.
      features: float32 `[W, C]`.
      before: int64 `[W, K]`, the windows before each one.
      after: The same behind it.
    """

    name: str
    fps: float
    spans: np.ndarray
    features: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def visual(self, row: int) -> np.ndarray:
        """What the model sees of a window: `[3 C]`."""
        return windows.visual_features(self.features, np.array([row]), self.before, self.after)[0]


@dataclasses.dataclass(frozen=True)
class Query:
    """A sentence: name, video, text ('' where it is not known), frames `[2]`, frames a second or 0, vector `[S]`."""

    qid: str
    video: str
    text: str
    span: np.ndarray
    fps: float
    vector: np.ndarray


@dataclasses.dataclass(frozen=True)
class MomentData:
    """The sentences of a split, and the videos that they are about, if there are windows of them."""

    videos: list[Video]
    queries: list[Query]

    def by_video(self) -> dict[str, list[int]]:
        """For every video that has sentences their numbers, videos sorted by name, sentences in their order."""
        found: dict[str, list[int]] = {name: [] for name in sorted({query.video for query in self.queries})}
        for number, query in enumerate(self.queries):
            found[query.video].append(number)
        return found

    def spans_by_video(self) -> dict[str, tuple[slice, np.ndarray]]:
        """For every video that has sentences its windows: which of all, counted over the videos, and `[W, 2]`."""
        found = dict.fromkeys(self.by_video(), (slice(0, 0), np.zeros((0, 2), np.int64)))
        end = 0
        for video in self.videos:
            found[video.name] = slice(end, end + len(video.spans)), video.spans
            end += len(video.spans)
        return found

    def truth(self, queries: Sequence[int]) -> np.ndarray:
        """What some sentences describe: `[S, 2]`, frames."""
        return np.array([self.queries[number].span for number in queries]).reshape(-1, 2)


def load(window_directory: str, query_directory: str, split: str, rules: Rules) -> MomentData:
    """Reads the sentences of a split and the windows of their videos.

    Raises:
      DataError: for a data set that is missing or damaged, or was made for other sizes or of other features.
    """
    queries = load_queries(query_directory, split, rules)
    return MomentData(load_windows(window_directory, {query.video for query in queries}, rules), queries)


def load_queries(directory: str, split: str, rules: Rules) -> list[Query]:
    """The sentences of a split; raises DataError as `load` does."""
    found = Split(directory, split)
    wanted = {"kind": "ctrl_queries", "sentence_dim": rules.sentence_dim, "text_source": rules.text_source}
    check_protocol(directory, found.protocol, wanted)
    return [
        Query(
            record["qid"].decode(),
            record["video"].decode(),
            record["text"].decode(),
            record["span"],
            float(record["fps"]),
            record["vector"],
        )
        for record in read_records(found, QUERY_FEATURES)
    ]


def load_windows(directory: str, videos: Container[str], rules: Rules) -> list[Video]:
    """Those of some videos that have windows, sorted by name; raises DataError as `load` does."""
    found = Split(directory, WINDOWS)
    wanted = {"kind": "ctrl_windows", "feature_dim": rules.visual_dim // 3, "video_source": rules.video_source}
    check_protocol(directory, found.protocol, wanted)
    kept = []
    for record in read_records(found, WINDOW_FEATURES):
        name, spans = record["video"].decode(), record["spans"]
        if name in videos and len(spans):
            sides = windows.context(spans, rules.context_num, rules.context_size, rules.context)
            kept.append(Video(name, float(record["fps"]), spans, record["features"], *sides))
    return sorted(kept, key=lambda video: video.name)


class TrainPipeline(Counted):
    """Endless full batches of pairs of a window and a sentence that describes it.

    Every epoch is a permutation of all pairs, cut into batches; with `unique_clips` a batch is drawn by itself, and
    pairs whose moment it already holds are drawn again (jiyanggao/TALL, dataset.py). The order hangs on the seed and
    the position alone, not on the number of processes.

    Attributes:
      pairs: int64 `[P, 2]`: number of the window, counted over all videos, and of the sentence.

    Raises:
      DataError: where there are fewer pairs, or moments, than a batch takes.
    """

    def __init__(self, data: MomentData, rules: Rules, shard: DataShard) -> None:
        super().__init__(shard)
        self.data = data
        self._place = [(video, row) for video in data.videos for row in range(len(video.spans))]
        spans = np.concatenate([np.zeros((0, 2), np.int64), *(video.spans for video in data.videos)])
        moments = np.array([query.span for query in data.queries]).reshape(-1, 2)
        self.pairs = windows.select_pairs(
            [video.name for video, _ in self._place],
            spans,
            [query.video for query in data.queries],
            moments,
            min_overlap=rules.min_overlap,
            max_outside=rules.max_outside,
        )
        self._offsets = (moments[self.pairs[:, 1]] - spans[self.pairs[:, 0]]).astype(np.float32)
        clips: dict[tuple, int] = {}
        names = [(query.video, *query.span) for query in data.queries]
        self._clips = np.array([clips.setdefault(names[number], len(clips)) for number in self.pairs[:, 1]], np.int64)
        self._unique = rules.unique_clips
        units = "moments" if self._unique else "pairs"
        count = len(clips) if self._unique else len(self.pairs)
        if count < shard.batch_size:
            raise DataError(
                f"data: {count} {units} of windows and sentences do not fill a batch of {shard.batch_size} "
                f"({len(data.queries)} sentences, {len(spans)} windows of {len(data.videos)} of their videos)"
            )

    def epoch_examples(self) -> int:
        """Examples of one epoch; the remainder that fills no batch is dropped."""
        return len(self.pairs) // self.shard.batch_size * self.shard.batch_size

    def plan(self, batch: int) -> np.ndarray:
        """Numbers of the pairs of a whole batch, counted from the run's start."""
        size = self.shard.batch_size
        if self._unique:
            return self._draw(np.random.default_rng((self.shard.seed, batch)))
        epoch, within = divmod(batch, len(self.pairs) // size)
        order = np.random.default_rng((self.shard.seed, epoch)).permutation(len(self.pairs))
        return order[within * size : (within + 1) * size]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches of `visual` `[B, V]`, `sentence` `[B, S]`, `offsets` `[B, 2]` from the current position on."""
        local = self.shard.local_batch_size
        while True:
            pairs = self.plan(self._position // self.shard.batch_size)[self.shard.index * local :][:local]
            places = [self._place[number] for number in self.pairs[pairs, 0]]
            self._position += self.shard.batch_size
            yield {
                "visual": np.stack([video.visual(row) for video, row in places]),
                "sentence": np.stack([self.data.queries[number].vector for number in self.pairs[pairs, 1]]),
                "offsets": self._offsets[pairs],
            }

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        drawn = rng.choice(len(self.pairs), self.shard.batch_size, replace=False)
        seen: set[int] = set()
        for place in range(len(drawn)):
            while self._clips[drawn[place]] in seen:
                drawn[place] = rng.integers(len(self.pairs))
            seen.add(int(self._clips[drawn[place]]))
        return drawn


class EvaluationPipeline(Counted):
    """Every window and every sentence once, side by side: row i holds window i and sentence i, zeros beyond the last.

    Batches carry `mask`, 0 for padding, and `index`, the row's number.
    """

    def __init__(self, data: MomentData, rules: Rules, shard: DataShard) -> None:
        super().__init__(shard)
        self.data, self.rules = data, rules
        self._place = [(video, row) for video in data.videos for row in range(len(video.spans))]
        self._rows = max(len(self._place), len(data.queries))

    def epoch_examples(self) -> int:
        """Number of rows."""
        return self._rows

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches from the current position on."""
        local, rules = self.shard.local_batch_size, self.rules
        while self._position < self._rows:
            numbers = self._position + self.shard.index * local + np.arange(local)
            batch = {"visual": np.zeros((local, rules.visual_dim), np.float32)}
            batch["sentence"] = np.zeros((local, rules.sentence_dim), np.float32)
            for place, number in enumerate(numbers):
                if number < len(self._place):
                    video, row = self._place[number]
                    batch["visual"][place] = video.visual(row)
                if number < len(self.data.queries):
                    batch["sentence"][place] = self.data.queries[number].vector
            self._position += self.shard.batch_size
            yield {**batch, "mask": (numbers < self._rows).astype(np.int32), "index": numbers.astype(np.int32)}

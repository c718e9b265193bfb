"""Samples of CTRL: windows with context, sentences, pairs for training, and the pipelines of training and evaluation.

Windows and sentences are held in memory. Pairs, offsets and context are computed from them, so thresholds may change
without preparing the data again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vlm_jax.data.pipeline import EvaluationPipeline, MemoryExamples, MemorySource, TrainPipeline
from vlm_jax.errors import DataError
from vlm_jax.systems.ctrl import windows
from vlm_jax.types import DataShard


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """Settings for making samples from windows and sentences.

    Attributes:
      visual_dim: Width of a window with its context, three times that of its own features.
      sentence_dim: Width of a sentence's vector.
      min_overlap: Overlap that a pair must exceed, see `windows.select_pairs`.
      max_outside: Upper limit of the share of the window outside the moment, see `windows.select_pairs`.
      context_num: Number of stretches on each side, see `windows.context`.
      context_size: Number of frames per stretch.
      context: Choice of the windows that represent the context, `exact` or `nearest`, see `windows.context`.
      unique_clips: If true, no moment comes twice in a batch.
      video_source: Source of the windows' features, as their preparation states it; '' for released files.
      text_source: Source of the sentences' vectors; '' for released files.
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
    """Windows of a video.

    Attributes:
      name: Name of the video.
      fps: Frames per second, 0 where it is not known.
      spans: First and last frame of every window, int64 `[W, 2]`.
      features: Features of every window, float32 `[W, C]`.
      before: Rows of the windows that represent the context before each window, int64 `[W, K]`.
      after: Rows of the windows that represent the context after each window, int64 `[W, K]`.
      num_frames: Number of frames of the video, 0 where it is not known.
    """

    name: str
    fps: float
    spans: np.ndarray
    features: np.ndarray
    before: np.ndarray
    after: np.ndarray
    num_frames: int = 0

    def visual(self, row: int) -> np.ndarray:
        """Return the features of a window with its context, the model's input: `[3 C]`."""
        return windows.visual_features(self.features, np.array([row]), self.before, self.after)[0]


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Sentence about a moment of a video.

    Attributes:
      qid: Name of the sentence.
      video: Name of the video.
      text: The sentence itself, '' where it is not known.
      span: First and last frame of the moment, `[2]`.
      fps: Frames per second, 0 where it is not known.
      vector: Embedding of the sentence, `[S]`.
    """

    qid: str
    video: str
    text: str
    span: np.ndarray
    fps: float
    vector: np.ndarray


@dataclasses.dataclass(frozen=True)
class MomentData:
    """Sentences of a split, and those of their videos that have windows.

    A window's number counts the windows of all videos, in the order of `videos`.
    """

    videos: list[Video]
    queries: list[Sentence]

    def by_video(self) -> dict[str, list[int]]:
        """Return the numbers of the sentences of every video that has any, videos sorted by name."""
        found: dict[str, list[int]] = {name: [] for name in sorted({query.video for query in self.queries})}
        for number, query in enumerate(self.queries):
            found[query.video].append(number)
        return found

    def spans_by_video(self) -> dict[str, tuple[slice, np.ndarray]]:
        """Return numbers (a slice) and spans `[W, 2]` of the windows of every video that has sentences."""
        found = dict.fromkeys(self.by_video(), (slice(0, 0), np.zeros((0, 2), np.int64)))
        end = 0
        for video in self.videos:
            found[video.name] = slice(end, end + len(video.spans)), video.spans
            end += len(video.spans)
        return found

    def windows(self) -> list[tuple[Video, int]]:
        """Return video and row of every window, in the order of their numbers."""
        return [(video, row) for video in self.videos for row in range(len(video.spans))]

    def truth(self, queries: Sequence[int]) -> np.ndarray:
        """Return the true spans of sentences, given by their numbers: `[S, 2]`, frames."""
        return np.array([self.queries[number].span for number in queries]).reshape(-1, 2)


class Pairs(NamedTuple):
    """Pairs of a window and a sentence that describes it.

    Attributes:
      numbers: Numbers of window and sentence, int64 `[P, 2]`.
      offsets: Offsets from the window's start and end to the moment's, float32 `[P, 2]`, frames.
      moments: Number of the moment, int64 `[P]`, the same for all pairs of one moment.
    """

    numbers: np.ndarray
    offsets: np.ndarray
    moments: np.ndarray


def find_pairs(data: MomentData, spec: SampleSpec) -> Pairs:
    """Return all pairs whose window and moment overlap enough for training."""
    spans = np.concatenate([np.zeros((0, 2), np.int64), *(video.spans for video in data.videos)])
    truth = data.truth(range(len(data.queries)))
    numbers = windows.select_pairs(
        [video.name for video, _ in data.windows()],
        spans,
        [query.video for query in data.queries],
        truth,
        min_overlap=spec.min_overlap,
        max_outside=spec.max_outside,
    )
    known: dict[tuple, int] = {}
    names = [(query.video, *query.span) for query in data.queries]
    moments = np.array([known.setdefault(names[number], len(known)) for number in numbers[:, 1]], np.int64)
    return Pairs(numbers, (truth[numbers[:, 1]] - spans[numbers[:, 0]]).astype(np.float32), moments)


def train_pipeline(data: MomentData, spec: SampleSpec, shard: DataShard) -> TrainPipeline:
    """Return endless batches of pairs: `visual` `[B, V]`, `sentence` `[B, S]`, `offsets` `[B, 2]`.

    With `spec.unique_clips`, a pair whose moment is already in the batch is drawn again (jiyanggao/TALL, dataset.py).

    Raises:
      DataError: If there are fewer pairs (with `unique_clips`, moments) than a batch needs.
    """
    pairs, places = find_pairs(data, spec), data.windows()
    count = len(np.unique(pairs.moments)) if spec.unique_clips else len(pairs.numbers)
    if count < shard.batch_size:
        raise DataError(
            f"data: {count} {'moments' if spec.unique_clips else 'pairs'} of windows and sentences do not fill a batch "
            f"of {shard.batch_size} ({len(data.queries)} sentences, {len(places)} windows of {len(data.videos)} of "
            "their videos)"
        )

    def read(number: int, seed: tuple[int, ...]) -> Mapping[str, np.ndarray]:
        del seed
        window, sentence = pairs.numbers[number]
        video, row = places[window]
        vector = data.queries[sentence].vector
        return {"visual": video.visual(row), "sentence": vector, "offsets": pairs.offsets[number]}

    examples = MemoryExamples(MemorySource(len(pairs.numbers), read))
    return TrainPipeline(examples, shard, distinct=pairs.moments if spec.unique_clips else None)


def evaluation_pipeline(data: MomentData, spec: SampleSpec, shard: DataShard) -> EvaluationPipeline:
    """Return batches `visual` `[B, V]` and `sentence` `[B, S]` that hold every window and every sentence once.

    Item i holds window i and sentence i, and zeros where there are no more.
    """
    places = data.windows()

    def read(number: int, seed: tuple[int, ...]) -> Mapping[str, np.ndarray]:
        del seed
        visual, sentence = np.zeros(spec.visual_dim, np.float32), np.zeros(spec.sentence_dim, np.float32)
        if number < len(places):
            video, row = places[number]
            visual = video.visual(row)
        if number < len(data.queries):
            sentence = data.queries[number].vector
        return {"visual": visual, "sentence": sentence}

    return EvaluationPipeline(MemoryExamples(MemorySource(max(len(places), len(data.queries)), read)), shard)

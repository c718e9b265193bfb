"""GroundNLQ's samples: questions, windows of long clips, padding, targets, and both pipelines.

Clips and questions are held in memory; targets are worked out on the host in float64. The rules are those of
houzhijian/GroundNLQ, `libs/datasets`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vlm_jax.data.pipeline import (
    BatchPlan,
    Buckets,
    Columns,
    EvaluationPipeline,
    MemoryExamples,
    MemorySource,
    TrainPipeline,
)
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq.point_labels import RANGES, assign, points
from vlm_jax.types import DataShard

JITTER_SCALES = 10
"""A jittered target is up to so many times as long."""


class ClipFeatures(Protocol):
    """Features of clips by name, such as a `FeatureStore` that has loaded them."""

    def __getitem__(self, clip: str) -> np.ndarray:
        """Return the features of a clip: `[T, C]`."""

    def length(self, clip: str) -> int:
        """Return T."""


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """How batches are made of clips and questions.

    Attributes:
      video_dim: Width of a clip's features, C.
      text_dim: Width of a word's features, C.
      max_tokens: Number of words that questions are padded to, L.
      max_length: Largest number of positions that the model takes.
      buckets: Lengths that batches are padded to, multiples of the last level's stride; the last one is `max_length`.
      ranges: Regression ranges of the levels, see `point_labels.points`.
      radius: Center sampling radius, see `point_labels.assign`.
      feature_stride: Number of frames from one position to the next.
      fps: Frames per second.
      groups: Number of parts of a batch that the reference's processes padded by themselves.
      jitter: If true, training targets are shifted and dilated at random.
      reference_batch: Number of questions per evaluation batch of the reference.
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
        """Number of positions from one point of the last level to the next."""
        return 2 ** (len(self.ranges) - 1)

    def make_buckets(self, lengths: Sequence[int]) -> Buckets:
        """Return the buckets of examples whose clips, or windows of clips, have so many positions.

        The convolutions of every level must see one position of padding, as in the reference's full one; so a shorter
        bucket is as exact only if it leaves the last level's stride free.
        """
        needed = np.minimum(np.asarray(lengths, np.int64) + self.last_stride, self.max_length)
        return Buckets(needed, tuple(sorted({*self.buckets, self.max_length})))


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a clip.

    Attributes:
      qid: Name of the question.
      clip: Name of its clip.
      text: The question itself.
      duration: Length of the clip, seconds.
      spans: float64 `[M, 2]`, start and end of the answers, seconds; M may be 0.
      tokens: `[L, C]`, features of its words.
    """

    qid: str
    clip: str
    text: str
    duration: float
    spans: np.ndarray
    tokens: np.ndarray


class Window(NamedTuple):
    """A stretch of a question's clip: number of the question, the first position, and how many."""

    query: int
    start: int
    length: int


def positions(seconds: np.ndarray, spec: SampleSpec) -> np.ndarray:
    """Return seconds as positions, float64. The reference adds half a feature's length only on the way back."""
    return np.asarray(seconds, np.float64) * spec.fps / spec.feature_stride


def jittered(spans: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return shifted and dilated targets, in the same unit: `[M, 2]`; they may leave the clip.

    Args:
      spans: `[M, 2]`.
      draws: `[M, 2]`: a whole number s from 1 to 10, and u in [-1, 1]. The middle moves by up to (s - 1) / 2 lengths,
        the length becomes s times as much, so that what was there stays within.
    """
    spans, (scale, shift) = np.asarray(spans, np.float64).reshape(-1, 2), np.asarray(draws, np.float64).T
    length, middle = spans[:, 1] - spans[:, 0], (spans[:, 0] + spans[:, 1]) / 2
    middle = middle - shift * (scale - 1) * length / 2
    return np.stack([middle - scale * length / 2, middle + scale * length / 2], 1)


def windows(questions: Sequence[Question], store: ClipFeatures, max_length: int) -> list[Window]:
    """Return what evaluation shows of every question's clip: all of it, or windows that overlap by half or more."""
    found = []
    for number, question in enumerate(questions):
        length = store.length(question.clip)
        last = max(length - max_length, 0)
        for start in [*range(0, last, max_length // 2), last]:
            found.append(Window(number, start, min(length, max_length)))
    return found


def train_pipeline(
    questions: Sequence[Question], store: ClipFeatures, spec: SampleSpec, shard: DataShard
) -> TrainPipeline:
    """Return endless batches of questions with their clips and targets.

    They hold `video` `[B, T, C]` and `text` `[B, L, C]` with `video_mask` and `text_mask`, `extent` `[B, L]` (before
    the end of the longest question of the example's group), and for every point, level after level, `class_targets`
    `[B, P, 1]` and `offset_targets` `[B, P, 2]`.

    Raises:
      DataError: if there are fewer questions than a batch takes, a clip is longer than the model takes, or a question
        has no answer.
    """
    if len(questions) < shard.batch_size:
        raise DataError(f"data: {len(questions)} questions do not fill a batch of {shard.batch_size}")
    for question in questions:
        if store.length(question.clip) > spec.max_length:
            raise DataError(
                f"data: clip {question.clip} has {store.length(question.clip)} positions, training takes up to "
                f"{spec.max_length} (config.model.max_length); cut it, or leave its questions out"
            )
        if not len(question.spans):
            raise DataError(f"data: question {question.qid} has no answer to train on; is this a test split?")
    num_tokens = np.array([len(question.tokens) for question in questions])

    def read(number: int, seed: tuple[int, ...]) -> Mapping[str, Any]:
        question = questions[number]
        spans = question.spans
        if spec.jitter:
            rng = np.random.default_rng(seed)
            draws = rng.integers(1, JITTER_SCALES + 1, len(spans)), rng.uniform(-1, 1, len(spans))
            spans = jittered(spans, np.stack(draws, 1))
        return {"video": store[question.clip], "text": question.tokens, "spans": spans}

    def collate(columns: Columns, plan: BatchPlan) -> dict[str, np.ndarray]:
        table = _points(plan.bucket, spec.ranges)
        targets = [assign(table, positions(spans, spec), radius=spec.radius) for spans in columns["spans"]]
        classes, offsets = (np.stack(part) for part in zip(*targets, strict=True))
        longest = num_tokens[plan.numbers].reshape(spec.groups, -1).max(1)
        extents = np.repeat(longest, shard.batch_size // spec.groups)[plan.own]
        inputs = pad_inputs(columns["video"], columns["text"], extents, plan.bucket, spec)
        return inputs | {"class_targets": classes, "offset_targets": offsets.astype(np.float32)}

    examples = MemoryExamples(MemorySource(len(questions), read))
    buckets = spec.make_buckets([store.length(question.clip) for question in questions])
    return TrainPipeline(examples, shard, buckets=buckets, collate=collate)


def evaluation_pipeline(
    questions: Sequence[Question], store: ClipFeatures, spec: SampleSpec, shard: DataShard
) -> EvaluationPipeline:
    """Return batches of every window of every question once, shortest bucket first.

    They hold the inputs of training, and `duration` `[B]` (seconds from the window's beginning to the clip's end).
    `extent` follows the reference's batches: consecutive questions of the file, whatever the batch size here.
    """
    shown = windows(questions, store, spec.max_length)
    num_tokens = np.array([len(question.tokens) for question in questions], int)
    starts = np.arange(0, len(questions), spec.reference_batch)
    longest = np.maximum.reduceat(num_tokens, starts) if len(questions) else num_tokens

    def read(number: int, seed: tuple[int, ...]) -> Mapping[str, Any]:
        del seed
        query, start, length = shown[number]
        question = questions[query]
        return {
            "video": store[question.clip][start:][:length],
            "text": question.tokens,
            "extent": longest[query // spec.reference_batch],
            "duration": np.float32(question.duration - start * spec.feature_stride / spec.fps),
        }

    def collate(columns: Columns, plan: BatchPlan) -> dict[str, np.ndarray]:
        extents = np.array(columns["extent"])
        inputs = pad_inputs(columns["video"], columns["text"], extents, plan.bucket, spec)
        return inputs | {"duration": np.array(columns["duration"])}

    examples = MemoryExamples(MemorySource(len(shown), read))
    buckets = spec.make_buckets([window.length for window in shown])
    return EvaluationPipeline(examples, shard, buckets=buckets, collate=collate)


def pad_inputs(
    videos: Sequence[np.ndarray], tokens: Sequence[np.ndarray], extents: np.ndarray, bucket: int, spec: SampleSpec
) -> dict[str, np.ndarray]:
    """Return padded features and their masks.

    Args:
      videos: `[T, C]` each.
      tokens: `[L, C]` each.
      extents: `[B]`, number of words up to which the reference would have padded each question.
      bucket: Number of positions that clips are padded to.
      spec: Sizes.
    """
    video, video_mask = _padded(videos, bucket, spec.video_dim)
    words = [part.astype(np.float32, copy=False) for part in tokens]
    text, text_mask = _padded(words, spec.max_tokens, spec.text_dim)
    extent = np.arange(spec.max_tokens) < extents[:, None]
    return {"video": video, "video_mask": video_mask, "text": text, "text_mask": text_mask, "extent": extent}


def _padded(arrays: Sequence[np.ndarray], length: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """`[t, C]` each -> `[B, length, C]`, and which positions exist."""
    out = np.zeros((len(arrays), length, dim), arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out, np.arange(length) < np.array([[len(array)] for array in arrays])


@functools.lru_cache(maxsize=16)
def _points(length: int, ranges: tuple[tuple[float, float], ...]) -> np.ndarray:
    return points(length, ranges)

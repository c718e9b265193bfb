"""Samples of GroundNLQ: questions, windows of long clips, padding, targets, and the pipelines.

Clips and questions are held in memory; targets are computed on the host in float64. Reference: houzhijian/GroundNLQ,
`libs/datasets`.
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
"""Largest factor by which a target is dilated."""


class ClipFeatures(Protocol):
    """Features of clips by name, such as a `FeatureStore` that has loaded them."""

    def __getitem__(self, clip: str) -> np.ndarray:
        """Return the features of a clip: `[T, C]`."""

    def length(self, clip: str) -> int:
        """Return the number of positions of a clip, T."""


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """Settings for making batches from clips and questions.

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
      groups: Number of groups of consecutive examples in a batch; a process of the reference padded one group.
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
        """Return the number of positions from one point of the last level to the next."""
        return 2 ** (len(self.ranges) - 1)

    def make_buckets(self, lengths: Sequence[int]) -> Buckets:
        """Return the buckets of examples whose clips, or windows of clips, have these numbers of positions.

        The convolutions of every level must see a position of padding, as with the reference's full padding. A shorter
        bucket is therefore exact only if it leaves at least the last level's stride as padding.
        """
        needed = np.minimum(np.asarray(lengths, np.int64) + self.last_stride, self.max_length)
        return Buckets(needed, tuple(sorted({*self.buckets, self.max_length})))


@dataclasses.dataclass(frozen=True)
class Question:
    """Question about a clip.

    Attributes:
      qid: Name of the question.
      clip: Name of its clip.
      text: The question itself.
      duration: Length of the clip, seconds.
      spans: Start and end of the answers, float64 `[M, 2]`, seconds; M may be 0.
      tokens: Features of its words, `[L, C]`.
    """

    qid: str
    clip: str
    text: str
    duration: float
    spans: np.ndarray
    tokens: np.ndarray


class Window(NamedTuple):
    """Window of a question's clip: number of the question, first position, and number of positions."""

    query: int
    start: int
    length: int


def positions(seconds: np.ndarray, spec: SampleSpec) -> np.ndarray:
    """Convert seconds to positions, float64. The reference shifts by half a feature's length only on the way back."""
    return np.asarray(seconds, np.float64) * spec.fps / spec.feature_stride


def jittered(spans: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return targets dilated and shifted by random draws, `[M, 2]` in the unit of `spans`; they may leave the clip.

    Args:
      spans: Start and end, `[M, 2]`.
      draws: Random numbers, `[M, 2]`: a whole number s from 1 to 10, and u in [-1, 1]. The length is multiplied by s,
        and the middle moves by -u (s - 1) / 2 old lengths, so the new target contains the old one.
    """
    spans, (scale, shift) = np.asarray(spans, np.float64).reshape(-1, 2), np.asarray(draws, np.float64).T
    length, middle = spans[:, 1] - spans[:, 0], (spans[:, 0] + spans[:, 1]) / 2
    middle = middle - shift * (scale - 1) * length / 2
    return np.stack([middle - scale * length / 2, middle + scale * length / 2], 1)


def windows(questions: Sequence[Question], store: ClipFeatures, max_length: int) -> list[Window]:
    """Return what evaluation shows per question: its whole clip, or windows of it that overlap by half or more."""
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

    A batch holds `video` `[B, T, C]`, `video_mask` `[B, T]`, `text` `[B, L, C]`, `text_mask` `[B, L]`, and `extent`
    `[B, L]`, the positions before the end of the longest question in the example's group. Targets of the P points,
    level after level, are `class_targets` `[B, P, 1]` and `offset_targets` `[B, P, 2]`.

    Raises:
      DataError: If there are fewer questions than a batch needs, a clip is longer than `max_length`, or a question has
        no answer.
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

    A batch holds the inputs of training and `duration` `[B]`, seconds from the window's beginning to the clip's end.
    `extent` follows the batches of the reference, consecutive questions in the file, and not our batch size.
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
    """Return padded features and masks by name: `video`, `video_mask`, `text`, `text_mask` and `extent`.

    Args:
      videos: Features of each clip, `[T, C]`.
      tokens: Features of each question's words, `[L, C]`.
      extents: Number of words to which the reference would have padded each question, `[B]`.
      bucket: Number of positions that clips are padded to.
      spec: Sizes of samples.
    """
    video, video_mask = _padded(videos, bucket, spec.video_dim)
    words = [part.astype(np.float32, copy=False) for part in tokens]
    text, text_mask = _padded(words, spec.max_tokens, spec.text_dim)
    extent = np.arange(spec.max_tokens) < extents[:, None]
    return {"video": video, "video_mask": video_mask, "text": text, "text_mask": text_mask, "extent": extent}


def _padded(arrays: Sequence[np.ndarray], length: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad arrays `[T, C]` to `[B, length, C]` and return them with the mask of positions that exist, `[B, length]`."""
    out = np.zeros((len(arrays), length, dim), arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out, np.arange(length) < np.array([[len(array)] for array in arrays])


@functools.lru_cache(maxsize=16)
def _points(length: int, ranges: tuple[tuple[float, float], ...]) -> np.ndarray:
    return points(length, ranges)

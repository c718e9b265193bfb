"""Decoding of the heads' outputs to moments in seconds, compiled by XLA with fixed sizes.

Reference: houzhijian/GroundNLQ, `libs/modeling/meta_archs.py` (`inference_single_video`, `postprocessing`) and
`libs/utils/nms.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlm_jax.ops import nms
from vlm_jax.ops.segments import lengths

SUPPRESSIONS = ("soft", "hard", "none")


class Moments(NamedTuple):
    """Moments of one video and question, padded.

    Attributes:
      segments: Start and end, `[K, 2]`.
      scores: Scores, `[K]`, 0 where there is no moment.
      labels: Classes, int32 `[K]`.
      mask: Moments that exist, bool `[K]`. After suppression they come first, by falling score; without suppression
        they are ordered by level.
    """

    segments: jax.Array
    scores: jax.Array
    labels: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Options of decoding; the defaults are those of the released models.

    Attributes:
      score_threshold: Score that points must exceed.
      candidates_per_level: Largest number of candidates per level, the best ones.
      duration_threshold: Length that segments must exceed, in positions.
      suppression: `soft` lowers the scores of segments that overlap a better one, `hard` drops them, and `none` keeps
        all candidates in the order of the levels, whatever `max_moments` is.
      min_score: Smallest score: `soft` drops segments whose score has fallen below, `hard` requires a larger one.
      overlap: IoU from which on `hard` drops segments and the decays `linear` and `hard` of `soft` lower scores.
      decay: Decay of scores in `soft`, see `ops.nms.soft`.
      sigma: Width of the decay `gaussian`.
      max_moments: Number of moments, K.
      per_class: If true, segments are suppressed within their class only.
      vote: IoU from which on candidates contribute to the mean that replaces a moment; 0 for no voting. The reference
        votes only if segments are suppressed across classes.
      feature_stride: Number of frames from one position to the next.
      shift: Number of frames added to every time. The reference adds half of `feature_stride`, which its targets lack;
        0 is consistent with them.
      fps: Frames per second.
    """

    score_threshold: float = 0.001
    candidates_per_level: int = 2000
    duration_threshold: float = 0.001
    suppression: str = "soft"
    min_score: float = 0.001
    overlap: float = 0.1
    decay: str = "gaussian"
    sigma: float = 0.75
    max_moments: int = 5
    per_class: bool = True
    vote: float = 0.0
    feature_stride: float = 16.043
    shift: float = 0.5 * 16.043
    fps: float = 30.0


def decode(
    logits: Sequence[jax.Array],
    offsets: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    durations: jax.Array,
    options: Decoding,
) -> Moments:
    """Return the moments of a batch in seconds; an example may have none.

    Args:
      logits: Class logits of each level, `[B, T_l, N]`.
      offsets: Distances to start and end in strides of the level, `[B, T_l, 2]`.
      masks: Points that exist, bool `[B, T_l]`.
      durations: Durations, `[B]`, seconds; times are clipped to them.
      options: Options of decoding.

    Returns:
      Moments with the batch axis first in every array.
    """

    def one(
        logits: Sequence[jax.Array], offsets: Sequence[jax.Array], masks: Sequence[jax.Array], duration: jax.Array
    ) -> Moments:
        found = suppress(candidates(logits, offsets, masks, options), logits[0].shape[-1], options)
        return found._replace(segments=in_seconds(found.segments, duration, options))

    return jax.vmap(one)(tuple(logits), tuple(offsets), tuple(masks), durations)


def candidates(
    logits: Sequence[jax.Array], offsets: Sequence[jax.Array], masks: Sequence[jax.Array], options: Decoding
) -> Moments:
    """Return the candidates of all levels for one example, level after level, `[K, ...]`; segments are in positions."""
    levels = []
    for logit, offset, mask in zip(logits, offsets, masks, strict=True):
        length, classes = logit.shape
        stride = masks[0].shape[0] // length
        scores = (jax.nn.sigmoid(logit) * mask[:, None]).reshape(-1)
        scores, index = jax.lax.top_k(scores, min(options.candidates_per_level, len(scores)))
        position = index // classes
        reach = offset[position] * stride
        segments = (position * stride)[:, None] + reach * jnp.array([-1, 1], reach.dtype)
        there = (scores > options.score_threshold) & (lengths(segments) > options.duration_threshold)
        levels.append(Moments(segments, jnp.where(there, scores, 0), (index % classes).astype(jnp.int32), there))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)


def in_seconds(segments: jax.Array, duration: jax.Array, options: Decoding) -> jax.Array:
    """Convert segments `[..., 2]` from positions to seconds, clipped to 0 and the duration."""
    return jnp.clip((segments * options.feature_stride + options.shift) / options.fps, 0, duration)


def suppress(found: Moments, classes: int, options: Decoding) -> Moments:
    """Return the top K of N candidates of one example after suppression, by falling score."""
    if options.suppression == "none":
        return found
    count = options.max_moments

    def pick(mask: jax.Array) -> nms.Picks:
        if options.suppression == "soft":
            return nms.soft(
                found.segments,
                found.scores,
                mask,
                count,
                decay=options.decay,
                sigma=options.sigma,
                threshold=options.overlap,
                min_score=options.min_score,
            )
        return nms.greedy(
            found.segments,
            found.scores,
            mask & (found.scores > options.min_score),
            lambda overlap: overlap < options.overlap,
            count,
            epsilon=1e-6,
        )

    if options.per_class and classes > 1:
        own = found.labels[None] == jnp.arange(classes)[:, None]
        index, scores = (part.reshape(-1) for part in jax.vmap(pick)(found.mask & own))
        best = jnp.argsort(jnp.where(index < 0, -jnp.inf, scores), descending=True, stable=True)[:count]
        index, scores = index[best], scores[best]
    else:
        index, scores = pick(found.mask)
    segments = found.segments[index]
    if options.vote and not options.per_class:
        segments = nms.vote(segments, found.segments, found.scores, found.mask, options.vote)
    return Moments(segments, scores, found.labels[index], index >= 0)

"""From what a pyramid's heads say to moments in seconds, compiled by XLA with fixed sizes.

Rules of houzhijian/GroundNLQ, `libs/modeling/meta_archs.py` (`inference_single_video`, `postprocessing`) and
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
      segments: `[K, 2]` start and end.
      scores: `[K]`, 0 where there is none.
      labels: `[K]` int32, the class.
      mask: `[K]`, which exist. After suppression these come first, by falling score; without it they stand level
        after level.
    """

    segments: jax.Array
    scores: jax.Array
    labels: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How moments are chosen; the defaults are the released ones.

    Attributes:
      score_threshold: Points must score more.
      candidates_per_level: The best that a level may offer.
      duration_threshold: Segments must be longer, in positions.
      suppression: `soft` lowers scores of what overlaps a better moment, `hard` drops it, `none` keeps all candidates
        in the order of the levels, whatever `max_moments` says.
      min_score: `soft` drops a score that has fallen below; for `hard`, candidates must score more.
      overlap: From which on `hard` drops, and the decays `linear` and `hard` of `soft` lower scores.
      decay: How `soft` lowers scores, see `ops.nms.soft`.
      sigma: Width of the decay `gaussian`.
      max_moments: K.
      per_class: A class suppresses itself only.
      vote: Overlap from which on candidates take part in the mean that a moment is moved to; 0 moves none. The
        reference votes only where classes suppress each other.
      feature_stride: Frames from one position to the next.
      shift: Frames added to every time. The reference adds half a feature's frames, which its targets lack; 0 is
        consistent with them.
      fps: Frames a second.
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
    """Moments in seconds, all shapes with the examples first. Where nothing survives, nothing is made up.

    Args:
      logits: A list over the levels of `[B, T_l, N]`.
      offsets: A list of `[B, T_l, 2]`, distances in strides of the level.
      masks: A list of `[B, T_l]`.
      durations: `[B]`, seconds; times are held between 0 and them.
      options: What to keep.
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
    """What all levels offer for one example, in positions, level after level: lists of `[T_l, ...]` to `[K, ...]`."""
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
    """Return segments `[..., 2]` in seconds between 0 and the duration from segments in positions."""
    return jnp.clip((segments * options.feature_stride + options.shift) / options.fps, 0, duration)


def suppress(found: Moments, classes: int, options: Decoding) -> Moments:
    """Keep the best of the candidates of one example, by falling score: `[N, ...]` to `[K, ...]`."""
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

"""Non-maximum suppression of segments in time, compiled by XLA, for one padded set (use `jax.vmap` for several).

`greedy` and `soft` take segments `[N, 2]`, scores `[N]` and a mask `[N]` of the segments that exist. They return a
fixed number of picks, best first; missing picks have index -1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlm_jax.ops.segments import overlap

DECAYS = ("hard", "linear", "gaussian")
"""Decay functions of `soft`."""


class Picks(NamedTuple):
    """Segments that suppression keeps, best first.

    Attributes:
      index: Positions in the list of segments, int32 `[K]`; -1 where there are no more.
      score: Scores after any decay, `[K]`; 0 where there are no more.
    """

    index: jax.Array
    score: jax.Array


def greedy(
    segments: jax.Array,
    scores: jax.Array,
    mask: jax.Array,
    keeps: Callable[[jax.Array], jax.Array],
    max_picks: int,
    *,
    last_of_equals: bool = False,
    epsilon: float = 0.0,
) -> Picks:
    """Return the top K segments after greedy NMS: pick the best segment, drop what overlaps it, repeat.

    Args:
      segments: Start and end, `[N, 2]`.
      scores: Score of every segment, `[N]`.
      mask: Segments that exist, bool `[N]`.
      keeps: Function from the IoU of segments with a pick to a mask of those that stay; IoU is NaN for two segments of
        length 0.
      max_picks: Number of picks, K. A pick depends on earlier ones only, so a smaller K gives the same first picks.
      last_of_equals: If true, the last of several equal scores is picked first; else the first.
      epsilon: Number added to lengths, see `segments.overlap`.
    """

    def pick(alive: jax.Array, _: None) -> tuple[jax.Array, Picks]:
        best = _best(scores, alive, last_of_equals)
        some = alive.any()
        alive = alive & keeps(overlap(segments, segments[best], epsilon=epsilon)) & (jnp.arange(len(scores)) != best)
        return alive, Picks(jnp.where(some, best, -1), jnp.where(some, scores[best], 0))

    return jax.lax.scan(pick, mask, length=max_picks)[1]


def soft(
    segments: jax.Array,
    scores: jax.Array,
    mask: jax.Array,
    max_picks: int,
    *,
    decay: str = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.3,
    min_score: float = 0.001,
) -> Picks:
    """Return the top K segments after soft-NMS (Bodla et al. 2017; houzhijian/GroundNLQ, `nms_1d_cpu.cpp`).

    The scores of segments that overlap a pick are lowered instead of dropping the segments.

    Args:
      segments: Start and end, `[N, 2]`.
      scores: Score of every segment, `[N]`.
      mask: Segments that exist, bool `[N]`.
      max_picks: Number of picks, K; a smaller K gives the same first picks.
      decay: One of `DECAYS`. `gaussian` multiplies scores by exp(-IoU^2 / sigma) at any IoU. From `threshold` on,
        `linear` multiplies them by 1 - IoU, and `hard` sets them to 0.
      sigma: Width of `gaussian`.
      threshold: Smallest IoU at which `linear` and `hard` act.
      min_score: Smallest score; segments whose score falls below are dropped, except for the first pick.
    """

    def pick(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], Picks]:
        left, alive = state
        best = _best(left, alive, False)
        some = alive.any()
        shared = overlap(segments, segments[best], epsilon=1e-6)
        if decay == "gaussian":
            factor = jnp.exp(-jnp.square(shared) / sigma)
        else:
            factor = jnp.where(shared >= threshold, 1 - shared if decay == "linear" else 0.0, 1.0)
        after = left * factor
        others = alive & (jnp.arange(len(left)) != best) & (after >= min_score)
        return (after, others), Picks(jnp.where(some, best, -1), jnp.where(some, left[best], 0))

    return jax.lax.scan(pick, (scores, mask), length=max_picks)[1]


def vote(picks: jax.Array, segments: jax.Array, scores: jax.Array, mask: jax.Array, threshold: float) -> jax.Array:
    """Return picks `[K, 2]` moved to the weighted mean of the candidates whose IoU with them is `threshold` or more.

    The weight of a candidate is its score times its IoU (houzhijian/GroundNLQ, `libs/utils/nms.py`).
    """
    shared = overlap(picks[:, None], segments[None])
    weight = jnp.where(mask[None] & (shared >= threshold), scores[None] * shared, 0)
    return (weight[..., None] * segments[None]).sum(1) / weight.sum(1)[:, None]


def _best(scores: jax.Array, alive: jax.Array, last: bool) -> jax.Array:
    ranked = jnp.where(alive, scores, -jnp.inf)
    best = len(scores) - 1 - jnp.argmax(ranked[::-1]) if last else jnp.argmax(ranked)
    return best.astype(jnp.int32)

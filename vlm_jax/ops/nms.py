"""Suppression of segments that overlap better ones, compiled by XLA: one padded set at a time, `jax.vmap` for more.

Every function takes segments `[N, 2]`, scores `[N]` and a mask of those that exist `[N]`, and returns a fixed number of
picks, best first; what is not there has index -1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlm_jax.ops.segments import overlap

DECAYS = ("hard", "linear", "gaussian")
"""How `soft` lowers scores."""


class Picks(NamedTuple):
    """What is kept.

    Attributes:
      index: `[K]` int32 into the segments, -1 where there are no more.
      score: `[K]`, after any decay; 0 where there are no more.
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
    """Take the best segment again and again, and drop what overlaps it.

    Args:
      segments: `[N, 2]`.
      scores: `[N]`.
      mask: `[N]`.
      keeps: Returns whether segments stay, from their overlap with a pick, which is NaN for two of no length.
      max_picks: K. Picks depend on earlier ones only, so stopping early is exact.
      last_of_equals: Take the last of equal scores first, not the first.
      epsilon: Number added to lengths.
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
    """Lower the scores of what overlaps a pick instead of dropping it (Bodla et al. 2017; GroundNLQ, `nms_1d_cpu.cpp`).

    Args:
      segments: `[N, 2]`.
      scores: `[N]`.
      mask: `[N]`.
      max_picks: K; stopping early is exact.
      decay: `gaussian`: times exp(-overlap^2 / sigma), whatever the overlap; `linear`: times 1 - overlap, and `hard`:
        to 0, both from `threshold` on.
      sigma: Width of `gaussian`.
      threshold: Least overlap that the other two act on.
      min_score: Least score; what falls below is dropped, but for the first pick.
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
    """Move every pick to the mean of the candidates that overlap it by `threshold` or more: `[K, 2]`.

    Candidates weigh by score times overlap (GroundNLQ, `libs/utils/nms.py`).
    """
    shared = overlap(picks[:, None], segments[None])
    weight = jnp.where(mask[None] & (shared >= threshold), scores[None] * shared, 0)
    return (weight[..., None] * segments[None]).sum(1) / weight.sum(1)[:, None]


def _best(scores: jax.Array, alive: jax.Array, last: bool) -> jax.Array:
    ranked = jnp.where(alive, scores, -jnp.inf)
    best = len(scores) - 1 - jnp.argmax(ranked[::-1]) if last else jnp.argmax(ranked)
    return best.astype(jnp.int32)

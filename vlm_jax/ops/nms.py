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
    """Takes the best one again and again and drops what overlaps it.

    Args:
      segments: `[N, 2]`.
      scores: `[N]`.
      mask: `[N]`.
      keeps: Whether a segment stays, from its overlap with a pick; NaN (two of no length) is given as it is.
      max_picks: K. Picks hang on earlier ones only, so stopping early is exact.
      last_of_equals: Which of equal scores goes first.
      epsilon: Added to lengths.
    """

    def pick(alive: jax.Array, _: None) -> tuple[jax.Array, Picks]:
        best = _best(scores, alive, last_of_equals)
        some = alive.any()
        alive = alive & keeps(overlap(segments, segments[best], epsilon=epsilon)) & (jnp.arange(len(scores)) != best)
        return alive, Picks(jnp.where(some, best, -1), jnp.where(some, scores[best], 0))

    return jax.lax.scan(pick, mask, length=max_picks)[1]


def parallel_greedy(
    segments: jax.Array,
    scores: jax.Array,
    mask: jax.Array,
    keeps: Callable[[jax.Array], jax.Array],
    max_picks: int,
    *,
    last_of_equals: bool = False,
    epsilon: float = 0.0,
) -> Picks:
    """What `greedy` gives, by a fixed point over all pairs: few rounds where `greedy` takes K, but N x N memory.

    A segment stays if no better one that stays drops it; rounds end when nothing changes.
    """
    count = len(scores)
    place = jnp.arange(count)
    order = jnp.lexsort((-place if last_of_equals else place, -scores, ~mask))
    sorted_segments, present = segments[order], mask[order]
    drops = ~keeps(overlap(sorted_segments[:, None], sorted_segments[None], epsilon=epsilon)) & (
        place[:, None] < place[None]
    )

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        stays, _ = state
        after = present & ~(drops & stays[:, None]).any(0)
        return after, (after != stays).any()

    stays, _ = jax.lax.while_loop(lambda state: state[1], again, (present, jnp.array(True)))
    first = jnp.argsort(~stays, stable=True)[: min(max_picks, count)]
    first = jnp.pad(first, (0, max_picks - len(first)))
    there = (jnp.arange(max_picks) < stays.sum()) & (jnp.arange(max_picks) < count)
    index = order[first]
    return Picks(jnp.where(there, index, -1).astype(jnp.int32), jnp.where(there, scores[index], 0))


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
    """Lowers scores of what overlaps a pick instead of dropping it (Bodla et al. 2017; GroundNLQ, `nms_1d_cpu.cpp`).

    Args:
      segments: `[N, 2]`.
      scores: `[N]`.
      mask: `[N]`.
      max_picks: K; stopping early is exact.
      decay: `gaussian`: times exp(-overlap^2 / sigma), whatever the overlap; `linear`: times 1 - overlap, and `hard`:
        to 0, both from `threshold` on.
      sigma: Of `gaussian`.
      threshold: Of the other two.
      min_score: What falls below is dropped; the first pick is exempt.
    """
    if decay not in DECAYS:
        raise ValueError(f"soft: decay is {decay!r}, expected one of {', '.join(DECAYS)}")

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
    """Moves every pick to the mean of the candidates that overlap it by `threshold` or more: `[K, 2]`.

    Candidates weigh by score times overlap (GroundNLQ, `libs/utils/nms.py`).
    """
    shared = overlap(picks[:, None], segments[None])
    weight = jnp.where(mask[None] & (shared >= threshold), scores[None] * shared, 0)
    return (weight[..., None] * segments[None]).sum(1) / weight.sum(1)[:, None]


def _best(scores: jax.Array, alive: jax.Array, last: bool) -> jax.Array:
    ranked = jnp.where(alive, scores, -jnp.inf)
    best = len(scores) - 1 - jnp.argmax(ranked[::-1]) if last else jnp.argmax(ranked)
    return best.astype(jnp.int32)

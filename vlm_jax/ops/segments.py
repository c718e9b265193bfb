"""Lengths and overlaps of segments in time, `[..., 2]` (start and end, in any unit)."""

import jax
import jax.numpy as jnp


def lengths(segments: jax.Array) -> jax.Array:
    """Return the lengths `[...]` of segments `[..., 2]`."""
    return segments[..., 1] - segments[..., 0]


def overlap(a: jax.Array, b: jax.Array, *, epsilon: float = 0.0) -> jax.Array:
    """Return the intersection over union of segments `[...]`, NaN for two segments of length 0.

    Args:
      a: Segments, `[..., 2]`.
      b: Segments, `[..., 2]`, of a shape that broadcasts with `a`.
      epsilon: Number added to both lengths (houzhijian/GroundNLQ, `nms_1d_cpu.cpp`). As there, each length is rounded
        before the two are added: the order decides about near-duplicates.
    """
    intersection = _intersection(a, b)
    return intersection / ((lengths(a) + epsilon) + (lengths(b) + epsilon) - intersection)


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    shared = jnp.minimum(a[..., 1], b[..., 1]) - jnp.maximum(a[..., 0], b[..., 0])
    return jnp.maximum(shared, 0)

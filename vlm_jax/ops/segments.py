"""Segments in time: `[..., 2]`, start and end, in any unit."""

import jax
import jax.numpy as jnp


def lengths(segments: jax.Array) -> jax.Array:
    """`[..., 2]` -> `[...]`."""
    return segments[..., 1] - segments[..., 0]


def overlap(a: jax.Array, b: jax.Array, *, epsilon: float = 0.0) -> jax.Array:
    """Length of the intersection over that of the union, `[..., 2]` against `[..., 2]`: NaN for two of no length.

    Args:
      a: Segments.
      b: Segments, of a shape that fits.
      epsilon: Added to both lengths, as GroundNLQ's suppression does (`nms_1d_cpu.cpp`). Each sum is rounded before
        the two are added, as there: the order decides about near-duplicates.
    """
    intersection = _intersection(a, b)
    return intersection / ((lengths(a) + epsilon) + (lengths(b) + epsilon) - intersection)


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    shared = jnp.minimum(a[..., 1], b[..., 1]) - jnp.maximum(a[..., 0], b[..., 0])
    return jnp.maximum(shared, 0)

"""Max pooling over video; in both forms the gradient goes to the first of equal values, as in torch."""

import jax
import jax.numpy as jnp
from jax import lax

from vlm_jax.ops import forms

Window = tuple[int, int, int]
Padding = tuple[tuple[int, int], ...]


def max_pool(x: jax.Array, window: Window, strides: Window, padding: Padding) -> jax.Array:
    """Return the largest value in each window of a video.

    Args:
      x: Video, `[B, T, H, W, C]`.
      window: Window size along T, H and W.
      strides: Strides along T, H and W.
      padding: Number of positions of minus infinity before and after, along T, H and W.

    Returns:
      `[B, T', H', W', C]`.
    """
    return forms.choose(plain=_max_pool_plain, cpu=_max_pool_cpu)(x, window, strides, padding)


def max_pool_from_start(x: jax.Array, window: Window, strides: Window) -> jax.Array:
    """Max-pool a video `[B, T, H, W, C]` with windows that start at `i * stride` and are cut off at the end.

    An axis of length N becomes `ceil(N / stride)` long. S3D pools this way between its stages
    (antoine77340/MIL-NCE_HowTo100M, s3dg.py). XLA's SAME padding would start odd lengths at -1 instead.
    """
    padding = []
    for size, stride, length in zip(window, strides, x.shape[1:4], strict=True):
        last = (-(-length // stride) - 1) * stride
        padding.append((0, max(0, last + size - length)))
    return max_pool(x, window, strides, tuple(padding))


def _max_pool_plain(x: jax.Array, window: Window, strides: Window, padding: Padding) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def _max_pool_cpu(x: jax.Array, window: Window, strides: Window, padding: Padding) -> jax.Array:
    """Max-pool by comparing shifted views, one axis at a time.

    The gradient consists of selects and adds, which run several times faster on a CPU than the scatter of
    `reduce_window`.
    """
    for axis in (3, 2, 1):
        size, stride, pad = window[axis - 1], strides[axis - 1], padding[axis - 1]
        if size == 1 and stride == 1:
            continue
        length = (x.shape[axis] + sum(pad) - size) // stride + 1
        if any(pad):
            pads = [(0, 0)] * x.ndim
            pads[axis] = pad
            x = jnp.pad(x, pads, constant_values=-jnp.inf)
        span = stride * (length - 1) + 1
        views = [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)]
        x = views[0]
        for view in views[1:]:
            # Not `maximum`, whose gradient is divided between equal values.
            x = jnp.where(view > x, view, x)
    return x

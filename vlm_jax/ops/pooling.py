"""Max pooling over video as maxima of shifted views, one axis at a time."""

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(
    x: jax.Array, window: tuple[int, int, int], strides: tuple[int, int, int], padding: tuple[tuple[int, int], ...]
) -> jax.Array:
    """Largest value in each window of a `[B, T, H, W, C]` video.

    A maximum over a box is a maximum along each axis in turn; written so, its gradient is selects and adds, several
    times faster than the scatter behind `reduce_window`.

    Args:
      x: The video.
      window: Extent along T, H, W.
      strides: Along T, H, W.
      padding: Minus infinity before and after, along T, H, W.
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
            # Not `maximum`, whose gradient divides between equals: the first of them takes it, as in torch.
            x = jnp.where(view > x, view, x)
    return x


def max_pool_from_start(x: jax.Array, window: tuple[int, int, int], strides: tuple[int, int, int]) -> jax.Array:
    """Max pooling whose window `i` starts at `i * stride` and is cut off at the end: length `ceil(N / stride)`.

    S3D's pools between stages (antoine77340/MIL-NCE_HowTo100M, s3dg.py); XLA's SAME starts odd lengths at -1.
    """
    padding = []
    for size, stride, length in zip(window, strides, x.shape[1:4], strict=True):
        last = (-(-length // stride) - 1) * stride
        padding.append((0, max(0, last + size - length)))
    return max_pool(x, window, strides, tuple(padding))

"""Convolutions over video and over sequences; the plain and the CPU form share one kernel layout."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from vlm_jax.ops import forms
from vlm_jax.ops.products import multiply, sum_of_products_cpu

Padding = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int, int] = (1, 1, 1),
    padding: Padding = ((0, 0), (0, 0), (0, 0)),
) -> jax.Array:
    """Cross-correlate a video with a kernel.

    Args:
      x: Video, `[B, T, H, W, C_in]`.
      kernel: Kernel, `[kt, kh, kw, C_in, C_out]`.
      strides: Strides along T, H and W.
      padding: Number of zeros before and after, along T, H and W.

    Returns:
      `[B, T', H', W', C_out]` in the promoted type of `x` and `kernel`.
    """
    return forms.choose(plain=_convolve_plain, cpu=_convolve_cpu)(x, kernel, strides, padding)


def convolve_time(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve a sequence over time, padded with K // 2 zeros at both ends.

    Args:
      x: Sequence, `[B, T, C]`.
      kernel: Kernel, `[K, C, F]`, K odd.

    Returns:
      `[B, T, F]`.
    """
    return forms.choose(plain=_convolve_time_plain, cpu=_convolve_time_cpu)(x, kernel)


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve every channel over time by a kernel of its own, padded with K // 2 zeros at both ends.

    Args:
      x: Sequence, `[B, T, C]`.
      kernel: Kernel, `[K, C]`, K odd.
      stride: Stride over time.

    Returns:
      `[B, T / stride, C]` in the type of `x`.
    """
    return forms.choose(plain=_convolve_depthwise_plain, cpu=_convolve_depthwise_cpu)(x, kernel, stride)


def convolve_depthwise_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve every channel over height and width by a kernel of its own, padded with K // 2 zeros on all sides.

    A sum of shifted views, since XLA's convolution with as many groups as channels is many times slower on CPUs.

    Args:
      x: Maps, `[..., H, W, C]`.
      kernel: Kernel, `[K, K, C]`, K odd.

    Returns:
      `[..., H, W, C]` in the type of `x`.
    """
    size, (height, width) = len(kernel), x.shape[-3:-1]
    edges = (size // 2, size // 2)
    padded = jnp.pad(x, [*([(0, 0)] * (x.ndim - 3)), edges, edges, (0, 0)])
    # Wide, so that the gradient of the kernel is summed in at least float32.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    views = (
        padded[..., row : row + height, column : column + width, :].astype(wide) * kernel[row, column].astype(wide)
        for row in range(size)
        for column in range(size)
    )
    return sum(views).astype(x.dtype)


def space_to_depth(x: jax.Array) -> jax.Array:
    """Fold each 2x2x2 cell into channels: `[B, T, H, W, C]` -> `[B, T/2, H/2, W/2, 8C]`.

    Output channel `((dt*2 + dh)*2 + dw)*C + c` holds channel `c` at offset `(dt, dh, dw)` of the cell
    (antoine77340/S3D_HowTo100M, s3dg.py).

    Raises:
      ValueError: If T, H or W is odd.
    """
    batch, time, height, width, channels = x.shape
    if time % 2 or height % 2 or width % 2:
        raise ValueError(f"space-to-depth needs even frames, height and width; found {time}x{height}x{width}")
    x = x.reshape(batch, time // 2, 2, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, time // 2, height // 2, width // 2, 8 * channels)


def _convolve_plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, int, int], padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def _convolve_cpu(x: jax.Array, kernel: jax.Array, strides: tuple[int, int, int], padding: Padding) -> jax.Array:
    """Return the same result as `_convolve_plain` without a 3-D convolution.

    Kernels of one pixel become matrix products whose results are shifted in time. All others become a 2-D convolution
    of single frames whose channels hold the time taps.
    """
    time, height, width, channels, features = kernel.shape
    if strides == (1, 1, 1) and (height, width) == (1, 1):
        return sum(_shifted(multiply(x, kernel[i, 0, 0]), i, time, padding[0]) for i in range(time))
    taps = jnp.concatenate(_taps(x, time, strides[0], padding[0]), -1)
    batch, frames = taps.shape[:2]
    planes = lax.conv_general_dilated(
        taps.reshape(batch * frames, *taps.shape[2:]),
        kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, time * channels, features),
        strides[1:],
        padding[1:],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return planes.reshape(batch, frames, *planes.shape[1:])


def _shifted(x: jax.Array, tap: int, size: int, padding: tuple[int, int]) -> jax.Array:
    """Return `x` shifted in time to where tap number `tap` of `size` taps reads it, with zeros beyond its ends."""
    before, after = padding[0] - tap, padding[1] - size + 1 + tap
    if before == after == 0:
        return x
    edges = [(0, 0, 0)] * x.ndim
    edges[1] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _taps(x: jax.Array, size: int, stride: int, padding: tuple[int, int]) -> list[jax.Array]:
    """Return the `size` strided views of `[B, T, ...]` that the taps of a kernel of that size see along T."""
    length = (x.shape[1] + sum(padding) - size) // stride + 1
    x = jnp.pad(x, [(0, 0), padding, *([(0, 0)] * (x.ndim - 2))])
    span = stride * (length - 1) + 1
    return [lax.slice_in_dim(x, i, i + span, stride, 1) for i in range(size)]


def _centred_taps(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    return _taps(x, size, stride, (size // 2, size // 2))


def _convolve_time_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    half = len(kernel) // 2
    return lax.conv_general_dilated(x, kernel, (1,), [(half, half)], dimension_numbers=("NHC", "HIO", "NHC"))


@jax.custom_vjp
def _convolve_time_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve by one matrix product for all taps, whose parts are shifted and summed without copies of the input."""
    size, channels, features = kernel.shape
    taps = x @ jnp.moveaxis(kernel, 0, 1).reshape(channels, size * features)
    taps = jnp.pad(taps, ((0, 0), (size // 2, size // 2), (0, 0)))
    length = x.shape[1]
    return sum(taps[:, tap : tap + length, tap * features : (tap + 1) * features] for tap in range(size))


def _convolve_time_forward(x: jax.Array, kernel: jax.Array) -> tuple:
    return _convolve_time_cpu(x, kernel), (x, kernel)


def _convolve_time_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size, channels, features = kernel.shape
    # The automatic gradient would transpose K copies of the input's gradient; this one copies the output's instead.
    around = jnp.concatenate(_centred_taps(gradient, size, 1)[::-1], -1)
    x_gradient = around @ kernel.transpose(0, 2, 1).reshape(size * features, channels)
    kernel_gradient = jnp.stack([jnp.einsum("btc,btf->cf", view, gradient) for view in _centred_taps(x, size, 1)])
    return x_gradient, kernel_gradient


_convolve_time_cpu.defvjp(_convolve_time_forward, _convolve_time_backward)


def _convolve_depthwise_plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    # Wide, so that the gradient of the kernel is summed in at least float32.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    views = _centred_taps(x, len(kernel), stride)
    return sum(view.astype(wide) * tap for view, tap in zip(views, kernel.astype(wide), strict=True)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_depthwise_cpu(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return sum(view * tap for view, tap in zip(_centred_taps(x, len(kernel), stride), kernel, strict=True))


def _convolve_depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple:
    return _convolve_depthwise_cpu(x, kernel, stride), (x, kernel)


def _convolve_depthwise_backward(stride: int, saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    views, pull = jax.vjp(lambda x: _centred_taps(x, len(kernel), stride), x)
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    kernel_gradient = jnp.stack([sum_of_products_cpu(wide, view.astype(wide.dtype), (0, 1)) for view in views])
    return pull([gradient * tap for tap in kernel])[0], kernel_gradient.astype(kernel.dtype)


_convolve_depthwise_cpu.defvjp(_convolve_depthwise_forward, _convolve_depthwise_backward)

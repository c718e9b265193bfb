"""Convolutions over video, in the two forms that matter for speed, and over sequences.

Kernels of video are `[kt, kh, kw, C_in, C_out]` whatever the form, so the choice never reaches a checkpoint.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from vlm_jax.ops.normalisation import sum_of_products

Padding = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

DIRECT = "direct"
FACTORISED = "factorised"


def preferred_form() -> str:
    """The form to use on this process's devices: factorised on a CPU, direct elsewhere."""
    return FACTORISED if jax.default_backend() == "cpu" else DIRECT


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int, int] = (1, 1, 1),
    padding: Padding = ((0, 0), (0, 0), (0, 0)),
    form: str = DIRECT,
) -> jax.Array:
    """Cross-correlates a video with a kernel.

    Args:
      x: `[B, T, H, W, C_in]`.
      kernel: `[kt, kh, kw, C_in, C_out]`.
      strides: Along T, H, W.
      padding: Zeros before and after, along T, H, W.
      form: `direct` is one 3-D convolution. `factorised` never calls one: kernels without extent in space become
        matrix products whose results are moved in time, all others a 2-D convolution of single frames whose channels
        hold the time taps. The sums are the same up to their order.

    Returns:
      `[B, T', H', W', C_out]` in the promoted type of `x` and `kernel`.

    Raises:
      ValueError: for an unknown form.
    """
    if form == DIRECT:
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    if form != FACTORISED:
        raise ValueError(f"convolution form {form!r} is not one of {DIRECT!r}, {FACTORISED!r}")
    time, height, width, channels, features = kernel.shape
    if strides == (1, 1, 1) and (height, width) == (1, 1):
        return sum(_moved(_product(x, kernel[i, 0, 0]), i, time, padding[0]) for i in range(time))
    taps = jnp.concatenate(_shifts(x, 1, time, strides[0], padding[0]), -1)
    batch, frames = taps.shape[:2]
    planes = lax.conv_general_dilated(
        taps.reshape(batch * frames, *taps.shape[2:]),
        kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, time * channels, features),
        strides[1:],
        padding[1:],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return planes.reshape(batch, frames, *planes.shape[1:])


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`x @ matrix` over rows: with more than one axis to sum over, the weights' gradient would copy its operand."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def _moved(x: jax.Array, tap: int, size: int, padding: tuple[int, int]) -> jax.Array:
    """What a tap of a window of that size adds to every output frame: `x` moved in time, zeros where it is over."""
    before, after = padding[0] - tap, padding[1] - size + 1 + tap
    if before == after == 0:
        return x
    edges = [(0, 0, 0)] * x.ndim
    edges[1] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _shifts(x: jax.Array, axis: int, size: int, stride: int, padding: tuple[int, int]) -> list[jax.Array]:
    """The `size` strided views of `x` that a window of that size sees along one axis."""
    length = (x.shape[axis] + sum(padding) - size) // stride + 1
    if any(padding):
        pads = [(0, 0)] * x.ndim
        pads[axis] = padding
        x = jnp.pad(x, pads)
    span = stride * (length - 1) + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)]


def space_to_depth(x: jax.Array) -> jax.Array:
    """Folds each 2x2x2 cell into channels: `[B, T, H, W, C]` -> `[B, T/2, H/2, W/2, 8C]`.

    Output channel `((dt*2 + dh)*2 + dw)*C + c` holds channel `c` at offset `(dt, dh, dw)` of the cell
    (antoine77340/S3D_HowTo100M, s3dg.py).

    Raises:
      ValueError: where T, H or W is odd.
    """
    batch, time, height, width, channels = x.shape
    if time % 2 or height % 2 or width % 2:
        raise ValueError(f"space-to-depth needs even frames, height and width; found {time}x{height}x{width}")
    x = x.reshape(batch, time // 2, 2, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, time // 2, height // 2, width // 2, 8 * channels)


@jax.custom_vjp
def convolve_time(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Over time, padded with K // 2 zeros at both ends: `[B, T, C]` -> `[B, T, F]`.

    One matrix product makes what every position gives to its neighbours; shifted sums collect it. No copy of the input
    is made for each tap.

    Args:
      x: `[B, T, C]`.
      kernel: `[K, C, F]`, K odd.
    """
    size, channels, features = kernel.shape
    taps = x @ jnp.moveaxis(kernel, 0, 1).reshape(channels, size * features)
    taps = jnp.pad(taps, ((0, 0), (size // 2, size // 2), (0, 0)))
    length = x.shape[1]
    return sum(taps[:, tap : tap + length, tap * features : (tap + 1) * features] for tap in range(size))


def _convolve_time_forward(x: jax.Array, kernel: jax.Array) -> tuple:
    return convolve_time(x, kernel), (x, kernel)


def _convolve_time_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size, channels, features = kernel.shape
    # Of the outputs: copies of the inputs' gradient, three times as wide, would be transposed for the kernel's.
    around = jnp.concatenate(_views(gradient, size, 1)[::-1], -1)
    x_gradient = around @ kernel.transpose(0, 2, 1).reshape(size * features, channels)
    kernel_gradient = jnp.stack([jnp.einsum("btc,btf->cf", view, gradient) for view in _views(x, size, 1)])
    return x_gradient, kernel_gradient


convolve_time.defvjp(_convolve_time_forward, _convolve_time_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Every channel by itself over time, padded with K // 2 zeros at both ends: `[B, T, C]` -> `[B, T / stride, C]`.

    Args:
      x: `[B, T, C]`.
      kernel: `[K, C]`, K odd.
      stride: Over time.
    """
    return sum(view * tap for view, tap in zip(_views(x, len(kernel), stride), kernel, strict=True))


def _views(x: jax.Array, taps: int, stride: int) -> list[jax.Array]:
    """What each tap sees."""
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    return [padded[:, tap : tap + x.shape[1] : stride] for tap in range(taps)]


def _convolve_depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple:
    return convolve_depthwise(x, kernel, stride), (x, kernel)


def _convolve_depthwise_backward(stride: int, saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    views, pull = jax.vjp(lambda x: _views(x, len(kernel), stride), x)
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    kernel_gradient = jnp.stack([sum_of_products(wide, view.astype(wide.dtype), (0, 1)) for view in views])
    return pull([gradient * tap for tap in kernel])[0], kernel_gradient.astype(kernel.dtype)


convolve_depthwise.defvjp(_convolve_depthwise_forward, _convolve_depthwise_backward)

"""Convolutions over video, in the two forms that matter for speed.

Kernels are `[kt, kh, kw, C_in, C_out]` whatever the form, so the choice never reaches a checkpoint.
"""

import jax
import jax.numpy as jnp
from jax import lax

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

"""Matrix products, and sums of products."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from vlm_jax.ops import forms


def multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply every row of `x` `[..., C]` by a matrix `[C, F]`: `[..., F]`."""
    return forms.choose(plain=_multiply_plain, cpu=_multiply_cpu)(x, matrix)


def _multiply_plain(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return x @ matrix


def _multiply_cpu(x: jax.Array, matrix: jax.Array) -> jax.Array:
    # With more than one axis to sum over, the gradient of the matrix would copy its operand.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return (rows @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def sum_of_products_cpu(a: jax.Array, b: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Return `(a * b).sum(axis)` in a form that XLA does not turn into a batched matrix product.

    XLA rewrites the plain form into a dot with the channels as batch dimension, which is fifty times slower on a CPU.
    Rounding the product to its own precision changes no value and hides the pattern.
    """
    product = a * b
    info = jnp.finfo(product.dtype)
    return lax.reduce_precision(product, info.nexp, info.nmant).sum(axis)

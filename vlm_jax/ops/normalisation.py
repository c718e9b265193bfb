"""Normalising and weighting channels, with gradients written out where automatic ones are slow."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def sum_of_products(a: jax.Array, b: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """`(a * b).sum(axis)`, kept from becoming a batched matrix product.

    XLA rewrites the plain form into a dot with the channels as batch dimension, which runs fifty times slower on a
    CPU. Rounding the product to its own precision changes no value and hides the pattern.
    """
    product = a * b
    info = jnp.finfo(product.dtype)
    return lax.reduce_precision(product, info.nexp, info.nmant).sum(axis)


@jax.custom_vjp
def batch_normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each group of rows by its own mean and biased variance.

    Args:
      x: `[G, N, C]`, G groups of N rows.
      scale: `[C]`.
      bias: `[C]`.
      epsilon: Added to the variance.

    Returns:
      The normalised rows in the type of `x`, and mean and biased variance `[G, C]`, at least float32. Gradients flow
      through the rows only: the statistics feed running averages.
    """
    return _batch_normalise_forward(x, scale, bias, epsilon)[0]


def _batch_normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(1)
    var = jnp.square(wide - mean[:, None]).mean(1)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    out = (wide * factor[:, None] + (bias - mean * factor)[:, None]).astype(x.dtype)
    return (out, mean, var), (x, scale, mean, inverse)


def _batch_normalise_backward(saved: tuple, gradients: tuple) -> tuple:
    x, scale, mean, inverse = saved
    gradient = gradients[0].astype(mean.dtype)
    normalised = (x.astype(mean.dtype) - mean[:, None]) * inverse[:, None]
    bias_gradient = gradient.sum(1)
    scale_gradient = sum_of_products(gradient, normalised, 1)
    # Two large terms and nothing after them: XLA would fuse a cheap last factor into every transposing reader.
    factor = scale * inverse
    constant = factor * bias_gradient / x.shape[1]
    slope = factor * scale_gradient / x.shape[1]
    x_gradient = (gradient * factor[:, None] - constant[:, None]) - normalised * slope[:, None]
    return x_gradient.astype(x.dtype), scale_gradient.sum(0), bias_gradient.sum(0), None


batch_normalise.defvjp(_batch_normalise_forward, _batch_normalise_backward)


@jax.custom_vjp
def weight_channels(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiplies a video `[B, T, H, W, C]` by one weight per example and channel `[B, C]`."""
    return x * weights[:, None, None, None]


def _weight_channels_forward(x: jax.Array, weights: jax.Array) -> tuple:
    return weight_channels(x, weights), (x, weights)


def _weight_channels_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weights = saved
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weights_gradient = sum_of_products(gradient.astype(wide), x.astype(wide), (1, 2, 3))
    return gradient * weights[:, None, None, None], weights_gradient.astype(weights.dtype)


weight_channels.defvjp(_weight_channels_forward, _weight_channels_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalises every row `[..., C]` by its own mean and biased variance, in float32 at least; the type of `x`."""
    return _layer_normalise_forward(x, scale, bias, epsilon)[0]


def _layer_normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    out = ((wide - mean) * inverse * scale + bias).astype(x.dtype)
    return out, (x, scale, mean, inverse)


def _layer_normalise_backward(epsilon: float, saved: tuple, gradient: jax.Array) -> tuple:
    x, scale, mean, inverse = saved
    gradient = gradient.astype(mean.dtype)
    normalised = (x.astype(mean.dtype) - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    scaled = gradient * scale
    slope = sum_of_products(scaled, normalised, -1)[..., None] / x.shape[-1]
    x_gradient = (scaled - scaled.mean(-1, keepdims=True) - normalised * slope) * inverse
    scale_gradient = sum_of_products(gradient, normalised, rows)
    return x_gradient.astype(x.dtype), scale_gradient.astype(scale.dtype), gradient.sum(rows).astype(scale.dtype)


layer_normalise.defvjp(_layer_normalise_forward, _layer_normalise_backward)


@jax.custom_vjp
def scale_channels(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiplies `[..., C]` by `[C]`; the type of `x`."""
    return x * scale.astype(x.dtype)


def _scale_channels_forward(x: jax.Array, scale: jax.Array) -> tuple:
    return scale_channels(x, scale), (x, scale)


def _scale_channels_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale = saved
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scale_gradient = sum_of_products(gradient.astype(wide), x.astype(wide), tuple(range(x.ndim - 1)))
    return gradient * scale.astype(x.dtype), scale_gradient.astype(scale.dtype)


scale_channels.defvjp(_scale_channels_forward, _scale_channels_backward)

"""Normalisation and weighting of channels; the CPU forms have custom gradients where automatic ones are slow."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from vlm_jax.ops import forms
from vlm_jax.ops.products import sum_of_products_cpu


def batch_normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each group of rows by its own mean and biased variance.

    Args:
      x: G groups of N rows, `[G, N, C]`.
      scale: Factor per channel, `[C]`.
      bias: Bias per channel, `[C]`.
      epsilon: Number added to the variance.

    Returns:
      The normalised rows in the type of `x`, and their mean and biased variance `[G, C]`, at least float32. Gradients
      flow through the rows only, since the statistics are for running averages.
    """
    return forms.choose(plain=_batch_normalise_plain, cpu=_batch_normalise_cpu)(x, scale, bias, epsilon)


def layer_normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalise every row `[..., C]` by its mean and biased variance, in at least float32; keep the type of `x`."""
    return forms.choose(plain=_layer_normalise_plain, cpu=_layer_normalise_cpu)(x, scale, bias, epsilon)


def l2_normalise(x: jax.Array) -> jax.Array:
    """Divide every row `[..., C]` by its length, or by 1e-12 where that is larger, in at least float32."""
    wide = x.astype(_wide(x.dtype))
    # The square root of a sum of zeros would have an infinite gradient.
    return wide * lax.rsqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), 1e-24))


def weight_channels(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiply a video `[B, T, H, W, C]` by one weight per example and channel `[B, C]`."""
    return forms.choose(plain=_weight_channels_plain, cpu=_weight_channels_cpu)(x, weights)


def scale_channels(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiply `x` `[..., C]` by one factor per channel `[C]`, in the type of `x`."""
    return forms.choose(plain=_scale_channels_plain, cpu=_scale_channels_cpu)(x, scale)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _batch_normalise_plain(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    wide = x.astype(_wide(x.dtype))
    mean, var = wide.mean(1), wide.var(1)
    factor = scale * lax.rsqrt(var + epsilon)
    out = (wide * factor[:, None] + (bias - mean * factor)[:, None]).astype(x.dtype)
    return out, lax.stop_gradient(mean), lax.stop_gradient(var)


@jax.custom_vjp
def _batch_normalise_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    return _batch_normalise_plain(x, scale, bias, epsilon)


def _batch_normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    out, mean, var = _batch_normalise_plain(x, scale, bias, epsilon)
    return (out, mean, var), (x, scale, mean, lax.rsqrt(var + epsilon))


def _batch_normalise_backward(saved: tuple, gradients: tuple) -> tuple:
    x, scale, mean, inverse = saved
    gradient = gradients[0].astype(mean.dtype)
    normalised = (x.astype(mean.dtype) - mean[:, None]) * inverse[:, None]
    bias_gradient = gradient.sum(1)
    scale_gradient = sum_of_products_cpu(gradient, normalised, 1)
    # The last operation combines two large terms: XLA would fuse a cheap final factor into every transposing reader.
    factor = scale * inverse
    constant = factor * bias_gradient / x.shape[1]
    slope = factor * scale_gradient / x.shape[1]
    x_gradient = (gradient * factor[:, None] - constant[:, None]) - normalised * slope[:, None]
    return x_gradient.astype(x.dtype), scale_gradient.sum(0), bias_gradient.sum(0), None


_batch_normalise_cpu.defvjp(_batch_normalise_forward, _batch_normalise_backward)


def _layer_normalise_plain(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    wide = x.astype(_wide(x.dtype))
    mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    return ((wide - mean) * lax.rsqrt(var + epsilon) * scale + bias).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_normalise_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return _layer_normalise_forward(x, scale, bias, epsilon)[0]


def _layer_normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    wide = x.astype(_wide(x.dtype))
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
    slope = sum_of_products_cpu(scaled, normalised, -1)[..., None] / x.shape[-1]
    x_gradient = (scaled - scaled.mean(-1, keepdims=True) - normalised * slope) * inverse
    scale_gradient = sum_of_products_cpu(gradient, normalised, rows)
    return x_gradient.astype(x.dtype), scale_gradient.astype(scale.dtype), gradient.sum(rows).astype(scale.dtype)


_layer_normalise_cpu.defvjp(_layer_normalise_forward, _layer_normalise_backward)


def _weight_channels_plain(x: jax.Array, weights: jax.Array) -> jax.Array:
    # Wide, so that the gradient of the weights is summed in at least float32.
    wide, out = _wide(x.dtype), jnp.promote_types(x.dtype, weights.dtype)
    return (x.astype(wide) * weights.astype(wide)[:, None, None, None]).astype(out)


@jax.custom_vjp
def _weight_channels_cpu(x: jax.Array, weights: jax.Array) -> jax.Array:
    return x * weights[:, None, None, None]


def _weight_channels_forward(x: jax.Array, weights: jax.Array) -> tuple:
    return _weight_channels_cpu(x, weights), (x, weights)


def _weight_channels_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weights = saved
    wide = _wide(x.dtype)
    weights_gradient = sum_of_products_cpu(gradient.astype(wide), x.astype(wide), (1, 2, 3))
    return gradient * weights[:, None, None, None], weights_gradient.astype(weights.dtype)


_weight_channels_cpu.defvjp(_weight_channels_forward, _weight_channels_backward)


def _scale_channels_plain(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = _wide(x.dtype)
    return (x.astype(wide) * scale.astype(x.dtype).astype(wide)).astype(x.dtype)


@jax.custom_vjp
def _scale_channels_cpu(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * scale.astype(x.dtype)


def _scale_channels_forward(x: jax.Array, scale: jax.Array) -> tuple:
    return _scale_channels_cpu(x, scale), (x, scale)


def _scale_channels_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale = saved
    wide = _wide(x.dtype)
    scale_gradient = sum_of_products_cpu(gradient.astype(wide), x.astype(wide), tuple(range(x.ndim - 1)))
    return gradient * scale.astype(x.dtype), scale_gradient.astype(scale.dtype)


_scale_channels_cpu.defvjp(_scale_channels_forward, _scale_channels_backward)

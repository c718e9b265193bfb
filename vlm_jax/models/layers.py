"""Layers that several models share."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vlm_jax.ops.convolution import Padding, convolve
from vlm_jax.ops.normalisation import batch_normalise, layer_normalise

Initializer = Callable[..., jax.Array]


def fan_in_uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Return uniform weights in +-1/sqrt(fan_in), torch's default; fan_in is the product of all axes but the last."""
    bound = _fan_in(shape) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def kaiming_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Return normal weights with standard deviation sqrt(2 / fan_in), not truncated (He et al. 2015)."""
    return jax.random.normal(key, shape, dtype) * (2 / _fan_in(shape)) ** 0.5


def kaiming_normal_fan_out(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Return normal weights of deviation sqrt(2 / fan_out); fan_out is outputs times kernel positions."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return jax.random.normal(key, shape, dtype) * (2 / fan_out) ** 0.5


def _fan_in(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape[:-1]:
        product *= size
    return product


class Linear(nn.Module):
    """Linear layer `x @ kernel + bias` with torch's default initialisation of both, uniform in +-1/sqrt(fan_in).

    Flax's `nn.Dense` does not tell the initialiser of the bias the number of inputs.

    Attributes:
      features: Number of outputs.
      dtype: Compute type, see `compute_in`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to `[..., C]`: `[..., features]`."""
        fan_in = x.shape[-1]
        kernel = self.param("kernel", fan_in_uniform, (fan_in, self.features))
        bias = self.param("bias", lambda key, shape: fan_in_uniform(key, (fan_in, *shape))[0], (self.features,))
        x, kernel, bias = compute_in(self.dtype, x, kernel, bias)
        return x @ kernel + bias


class Convolution(nn.Module):
    """Convolution over video.

    Attributes:
      features: Number of output channels.
      window: Kernel size along T, H and W.
      strides: Strides along T, H and W.
      padding: Number of zeros before and after, along T, H and W.
      kernel_init: Initialiser of the kernel.
      dtype: Compute type, see `compute_in`.
    """

    features: int
    window: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: Padding = ((0, 0), (0, 0), (0, 0))
    kernel_init: Initializer = fan_in_uniform
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve a video `[B, T, H, W, C]`: `[B, T', H', W', features]`."""
        kernel = self.param("kernel", self.kernel_init, (*self.window, x.shape[-1], self.features))
        x, kernel = compute_in(self.dtype, x, kernel)
        out = convolve(x, kernel, strides=self.strides, padding=self.padding)
        if self.use_bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.features,)).astype(out.dtype)
        return out


class BatchNorm(nn.Module):
    """Batch normalisation as in torch, with statistics per group of consecutive examples (flax has none per group).

    In training, each of `groups` equal parts of the batch is normalised by its own mean and biased variance, as if one
    process held it. The running statistics store the unbiased variance. Statistics are at least float32.

    Attributes:
      groups: Number of groups in the batch.
      running: Group that the running statistics follow: 'first' (as where process 0's are broadcast), or 'mean' of all
        groups (as where those of all processes are averaged).
      scale_init: Initialiser of the scale.
      momentum: Weight of a batch's statistics in the running ones (torch's convention, 1 minus flax's).
      epsilon: Number added to the variance.
    """

    groups: int = 1
    running: str = "first"
    scale_init: Initializer = nn.initializers.ones
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise `[B, ..., C]` and keep its shape and type; if `train` is true, by the batch's own statistics."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            return (wide * factor + (bias - running_mean.value * factor)).astype(x.dtype)
        grouped = x.reshape(self.groups, -1, channels)
        out, mean, var = batch_normalise(grouped, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = grouped.shape[1]
            mean, var = (value[0] if self.running == "first" else value.mean(0) for value in (mean, var))
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value += self.momentum * (lax.stop_gradient(mean) - running_mean.value)
            running_var.value += self.momentum * (lax.stop_gradient(unbiased) - running_var.value)
        return out.reshape(x.shape)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by constants, also in training; scale, bias and statistics are in the collection `frozen`."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `[..., C]` in at least float32 and keep its shape and type."""
        shape = (x.shape[-1],)
        scale, var = (self.variable("frozen", name, jnp.ones, shape).value for name in ("scale", "var"))
        bias, mean = (self.variable("frozen", name, jnp.zeros, shape).value for name in ("bias", "mean"))
        factor = scale * lax.rsqrt(var + self.epsilon)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (wide * factor + (bias - mean * factor)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm over channels with biased variance, computed in at least float32."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `[..., C]`; shape and type stay."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_normalise(x, scale, bias, self.epsilon)


def dense(
    features: int,
    dtype: jnp.dtype,
    name: str | None = None,
    kernel_init: Initializer = fan_in_uniform,
    use_bias: bool = True,
) -> nn.Dense:
    """Return a linear layer with `features` outputs, computed in `dtype` (see `compute_in`); its bias starts at 0."""
    # With None, flax promotes inputs and parameters to a common type, which keeps float64.
    wanted = None if jnp.dtype(dtype) == jnp.float32 else dtype
    return nn.Dense(features, use_bias=use_bias, dtype=wanted, kernel_init=kernel_init, name=name)


def drop_path(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Set the residual `[B, ...]` of some examples to 0 at random and scale the others, so that the mean stays."""
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], *([1] * (x.ndim - 1))))
    return x / (1 - rate) * kept


def compute_in(dtype: jnp.dtype, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Cast arrays to the compute type; where that is float32, float64 arrays stay float64."""
    wanted = jnp.dtype(dtype)
    if wanted == jnp.float32:
        wanted = jnp.result_type(jnp.float32, *arrays)
    return tuple(array.astype(wanted) for array in arrays)

"""Written-out gradients against automatic ones."""

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.ops.normalisation import batch_normalise, layer_normalise, scale_channels, weight_channels
from vlm_jax.ops.pixels import to_unit


def test_batch_normalise_is_the_textbook_and_so_is_its_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, target = rng.normal(size=(2, 3, 10, 4))
        scale, bias = rng.normal(size=(2, 4))

        def textbook(x, scale, bias):
            mean, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
            return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

        def loss(normalise):
            return lambda *arguments: jnp.sum(normalise(*arguments) * target)

        ours = jax.value_and_grad(loss(lambda *a: batch_normalise(*a, 1e-5)[0]), (0, 1, 2))(x, scale, bias)
        expected = jax.value_and_grad(loss(textbook), (0, 1, 2))(x, scale, bias)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        _, mean, var = batch_normalise(x, scale, bias, 1e-5)
        np.testing.assert_allclose(mean, x.mean(1))
        np.testing.assert_allclose(var, x.var(1))


def test_half_precision_keeps_its_type_and_float32_statistics():
    x = jnp.ones((1, 8, 4), jnp.bfloat16) * 3
    out, mean, var = batch_normalise(x, jnp.ones(4), jnp.zeros(4), 1e-5)
    assert (out.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


def test_weight_channels_and_its_gradient():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5, 6)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)
    ours = jax.value_and_grad(lambda x, w: jnp.sum(weight_channels(x, w) ** 2), (0, 1))(x, weights)
    expected = jax.value_and_grad(lambda x, w: jnp.sum((x * w[:, None, None, None]) ** 2), (0, 1))(x, weights)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_layer_normalise_is_the_textbook_and_so_is_its_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, target = rng.normal(size=(2, 3, 10, 4))
        scale, bias = rng.normal(size=(2, 4))

        def textbook(x, scale, bias):
            return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias

        def loss(normalise):
            return lambda *arguments: jnp.sum(normalise(*arguments) * target)

        ours = jax.value_and_grad(loss(lambda *a: layer_normalise(*a, 1e-5)), (0, 1, 2))(x, scale, bias)
        expected = jax.value_and_grad(loss(textbook), (0, 1, 2))(x, scale, bias)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_row_of_equals_has_a_finite_gradient():
    gradient = jax.grad(lambda x: layer_normalise(x, jnp.ones(4), jnp.zeros(4), 1e-5).sum())(jnp.zeros((2, 4)))
    assert np.isfinite(gradient).all()


def test_scale_channels_and_its_gradient():
    rng = np.random.default_rng(0)
    x, scale = jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32), jnp.asarray(rng.normal(size=6), jnp.float32)
    ours = jax.value_and_grad(lambda x, s: jnp.sum(scale_channels(x, s) ** 2), (0, 1))(x, scale)
    expected = jax.value_and_grad(lambda x, s: jnp.sum((x * s) ** 2), (0, 1))(x, scale)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bytes_are_divided_exactly():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(to_unit)(every), every.astype(np.float32) / np.float32(255))

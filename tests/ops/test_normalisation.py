"""Normalisation against the textbook's formulas; tests/ops/test_forms.py compares the gradients of the two forms."""

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.ops.normalisation import batch_normalise, l2_normalise, layer_normalise, scale_channels, weight_channels
from vlm_jax.ops.pixels import to_unit

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 10, 4)).astype(np.float32)
SCALE, BIAS = RNG.normal(size=(2, 4)).astype(np.float32)


def textbook(axis):
    centred = X - X.mean(axis, keepdims=True)
    return centred / np.sqrt(X.var(axis, keepdims=True) + 1e-5) * SCALE + BIAS


def test_batch_normalise_is_the_textbook():
    out, mean, var = batch_normalise(X, SCALE, BIAS, 1e-5)
    np.testing.assert_allclose(out, textbook(1), atol=1e-5)
    np.testing.assert_allclose(mean, X.mean(1), atol=1e-6)
    np.testing.assert_allclose(var, X.var(1), rtol=1e-5)


def test_layer_normalise_is_the_textbook():
    np.testing.assert_allclose(layer_normalise(X, SCALE, BIAS, 1e-5), textbook(-1), atol=1e-5)


def test_half_precision_keeps_its_type_and_float32_statistics():
    x = jax.ShapeDtypeStruct((1, 8, 4), jnp.bfloat16)
    out, mean, var = jax.eval_shape(lambda x: batch_normalise(x, SCALE, BIAS, 1e-5), x)
    assert (out.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


def test_a_row_of_equals_has_a_finite_gradient():
    gradient = jax.jit(jax.grad(lambda x: layer_normalise(x, SCALE, BIAS, 1e-5).sum()))(np.zeros((2, 4), np.float32))
    assert np.isfinite(gradient).all()


def test_rows_get_length_1_and_zeros_stay():
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(l2_normalise(rows), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: l2_normalise(x).sum())(rows)).all()
    assert l2_normalise(rows.astype(jnp.bfloat16)).dtype == jnp.float32


def test_channels_are_weighted_per_example_or_for_all():
    np.testing.assert_allclose(scale_channels(X, SCALE), X * SCALE, rtol=1e-6)
    video, weights = X.reshape(2, 5, 1, 2, 4), X[:, 0]
    np.testing.assert_allclose(weight_channels(video, weights), video * weights[:, None, None, None], rtol=1e-6)


def test_bytes_are_divided_exactly():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(to_unit)(every), every.astype(np.float32) / np.float32(255))

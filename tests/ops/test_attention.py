"""Banded attention against the whole matrix, and full attention with bias, dropout and weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops.attention import (
    BLOCK,
    full_attention,
    full_attention_and_weights,
    merge_heads,
    split_heads,
    window_attention,
)


def dense(query, key, value, mask, window, relative_bias=None):
    """All scores, the band cut out of them."""
    length = query.shape[1]
    offset = np.arange(length) - np.arange(length)[:, None]
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
    if relative_bias is not None:
        scores += relative_bias[:, np.clip(offset + window // 2, 0, window - 1)]
    seen = (np.abs(offset) <= window // 2) & mask[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), -1)
    return jnp.einsum("bhts,bshd->bthd", weights, value) * mask[:, :, None, None]


def made(length, heads=2, depth=3, seed=0):
    rng = np.random.default_rng(seed)
    parts = [jnp.asarray(rng.normal(size=(2, length, heads, depth)), jnp.float32) for _ in range(3)]
    mask = jnp.arange(length)[None] < jnp.array([[length], [length * 2 // 3]])
    return parts, mask


@pytest.mark.parametrize(("length", "window"), [(64, 5), (50, 9), (7, 9), (3 * BLOCK + 1, 19)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_band_and_its_gradients(length, window, biased):
    parts, mask = made(length)
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, window)), jnp.float32) if biased else None
    target = jnp.asarray(np.random.default_rng(2).normal(size=parts[0].shape), jnp.float32)

    def loss(function):
        return lambda parts, bias: (function(*parts, mask, window, bias) * target).sum()

    ours = jax.jit(jax.value_and_grad(loss(window_attention), (0, 1)))(parts, bias)
    expected = jax.jit(jax.value_and_grad(loss(dense), (0, 1)))(parts, bias)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        window_attention(*parts, mask, window, bias), dense(*parts, mask, window, bias), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("function", [full_attention, lambda *inputs: window_attention(*inputs, 9)])
def test_nothing_to_see_is_finite_backwards_too(function):
    parts, _ = made(40)
    value, gradients = jax.value_and_grad(lambda parts: function(*parts, jnp.zeros((2, 40), bool)).sum())(parts)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_queries_that_do_not_exist_get_nothing():
    parts, mask = made(40)
    out = np.asarray(window_attention(*parts, mask, 5))
    assert not out[~np.asarray(mask)].any()
    assert out[np.asarray(mask)].all()


def arrays_of(jaxpr):
    """Shapes of everything that a computation makes, inner ones included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from arrays_of(inner.jaxpr)


def test_memory_grows_with_the_length_and_not_its_square():
    largest = []
    for length in (512, 1024):
        parts, mask = made(length)
        loss = jax.grad(lambda parts, mask=mask: window_attention(*parts, mask, 9).sum())
        shapes = list(arrays_of(jax.make_jaxpr(loss)(parts).jaxpr))
        assert not any(sum(size >= length for size in shape) > 1 for shape in shapes)
        largest.append(max(map(np.prod, shapes)))
    assert largest[1] == 2 * largest[0]


def test_masked_keys_do_not_count_at_all():
    (query, key, value), mask = made(20)
    loud = jnp.where(mask[:, :, None, None], value, 1e6)
    for function in (full_attention, lambda *inputs: window_attention(*inputs, 5)):
        a, b = (np.asarray(function(query, key, v, mask)) for v in (value, loud))
        for row, column in itertools.product(range(2), range(13)):
            np.testing.assert_allclose(a[row, column], b[row, column], rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_is_added_to_the_scores(masked):
    (query, key, value), mask = made(9)
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, 9)), jnp.float32)
    out, weights = full_attention_and_weights(query, key, value, mask if masked else None, bias)
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / np.sqrt(3) + bias
    wanted = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -np.inf) if masked else scores, -1)
    np.testing.assert_allclose(weights, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out, jnp.einsum("bhts,bshd->bthd", wanted, value), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out, full_attention(query, key, value, mask if masked else None, bias))


def test_more_axes_before_the_positions_with_a_bias_for_each():
    (query, key, value), mask = made(6)
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 6, 6)), jnp.float32)
    folded = full_attention(*(jnp.stack([x, 2 * x], 1) for x in (query, key, value)), jnp.stack([mask, mask], 1), bias)
    for number, factor in enumerate((1, 2)):
        alone = full_attention(factor * query, factor * key, factor * value, mask, bias[number])
        np.testing.assert_allclose(folded[:, number], alone, rtol=1e-5, atol=1e-6)


def test_dropout_acts_on_the_weights_that_are_returned():
    parts, mask = made(6)
    calm, weights = full_attention_and_weights(*parts, mask)
    out, dropped = full_attention_and_weights(*parts, mask, dropout=lambda x: x.at[..., 0].set(0))
    np.testing.assert_array_equal(dropped, weights.at[..., 0].set(0))
    np.testing.assert_allclose(out, calm - weights[..., 0].transpose(0, 2, 1)[..., None] * parts[2][:, :1], atol=1e-6)


def test_softmax_and_bias_are_wide_in_half_precision():
    parts = [x.astype(jnp.bfloat16) for x in made(6)[0]]
    # In bfloat16, 64 and 64.125 are the same number.
    bias = jnp.where(jnp.arange(6) == 2, 64.125, 64.0) - jnp.zeros((2, 6, 6))
    out, weights = full_attention_and_weights(jnp.zeros_like(parts[0]), *parts[1:], bias=bias)
    assert out.dtype == weights.dtype == jnp.bfloat16
    np.testing.assert_allclose(weights[..., 2] / weights[..., 0], np.exp(0.125), rtol=1e-2)


def test_heads_split_and_merge():
    x = jnp.arange(24.0).reshape(2, 12)
    assert split_heads(x, 3).shape == (2, 3, 4)
    np.testing.assert_array_equal(split_heads(x, 3)[0, 1], x[0, 4:8])
    np.testing.assert_array_equal(merge_heads(split_heads(x, 3)), x)

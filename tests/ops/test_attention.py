"""Banded attention against the whole matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops.attention import BLOCK, full_attention, window_attention


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

"""Both forms of every operation give the same values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops import forms
from vlm_jax.ops.convolution import convolve, convolve_depthwise, convolve_time
from vlm_jax.ops.normalisation import batch_normalise, layer_normalise, scale_channels, weight_channels
from vlm_jax.ops.pooling import max_pool, max_pool_from_start
from vlm_jax.ops.products import multiply

EPSILON = 1e-5


def same(window, strides=(1, 1, 1)):
    return lambda x, kernel: convolve(x, kernel, strides=strides, padding=tuple((size // 2,) * 2 for size in window))


def pool(window, strides, padding=None):
    if padding is None:
        return lambda x: max_pool_from_start(x, window, strides)
    return lambda x: max_pool(x, window, strides, padding)


# Operation of arrays, and the shapes of these.
OPERATIONS = {
    "stem": (same((3, 7, 7), (2, 2, 2)), (1, 4, 8, 9, 3), (3, 7, 7, 3, 2)),
    "folded stem": (same((2, 4, 4)), (1, 4, 5, 6, 3), (2, 4, 4, 3, 2)),
    "space": (same((1, 3, 3)), (2, 2, 4, 5, 3), (1, 3, 3, 3, 2)),
    "time": (same((3, 1, 1)), (2, 4, 2, 3, 3), (3, 1, 1, 3, 2)),
    "point": (same((1, 1, 1)), (2, 2, 2, 3, 3), (1, 1, 1, 3, 2)),
    "strided time": (same((3, 1, 1), (2, 1, 1)), (2, 5, 2, 3, 3), (3, 1, 1, 3, 2)),
    "over time, 1 tap": (convolve_time, (2, 6, 3), (1, 3, 2)),
    "over time, 5 taps": (convolve_time, (2, 6, 3), (5, 3, 2)),
    "depthwise": (convolve_depthwise, (2, 6, 3), (3, 3)),
    "strided depthwise": (lambda x, kernel: convolve_depthwise(x, kernel, 2), (2, 7, 3), (3, 3)),
    "padded pool": (pool((3, 3, 3), (1, 1, 1), ((1, 1),) * 3), (1, 3, 4, 5, 2)),
    "pool from the start": (pool((3, 3, 3), (2, 2, 2)), (1, 3, 4, 5, 2)),
    "pool in space": (pool((1, 3, 3), (1, 2, 2)), (1, 2, 5, 4, 2)),
    "batch norm": (lambda x, scale, bias: batch_normalise(x, scale, bias, EPSILON), (2, 5, 3), (3,), (3,)),
    "layer norm": (lambda x, scale, bias: layer_normalise(x, scale, bias, EPSILON), (2, 5, 3), (3,), (3,)),
    "weights": (weight_channels, (2, 2, 3, 2, 4), (2, 4)),
    "scale": (scale_channels, (2, 3, 4), (4,)),
    "product": (multiply, (2, 3, 4), (4, 5)),
}


def outputs_and_gradients(operation, *arrays):
    outputs, pull = jax.vjp(operation, *arrays)
    # Another weight for every number, so that no two errors can cancel.
    weights = jax.tree.map(lambda out: jnp.sin(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype), outputs)
    return jax.tree.leaves((outputs, pull(weights)))


@functools.cache
def results(dtype):
    """Outputs and gradients of every operation by name, in both forms; compiled once for all."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == jnp.float64):
        wide = jnp.promote_types(dtype, jnp.float32)
        arrays = {
            name: [jnp.asarray(rng.normal(size=shape), wide if len(shape) == 1 else dtype) for shape in shapes]
            for name, (_, *shapes) in OPERATIONS.items()
        }
        found = []
        for form in (forms.PLAIN, forms.CPU):
            with forms.use(form):
                found.append(jax.jit(every_operation)(arrays))
    return found


def every_operation(arrays):
    return {name: outputs_and_gradients(operation, *arrays[name]) for name, (operation, *_) in OPERATIONS.items()}


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_forms_agree(name):
    plain, cpu = (form[name] for form in results(jnp.float64))
    assert len(plain) == len(cpu) > len(OPERATIONS[name]) - 1
    for a, b in zip(plain, cpu, strict=True):
        assert a.dtype == b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_forms_agree_in_half_precision(name):
    """Types are the same; vectors stay float32, as parameters of normalisation do."""
    plain, cpu = (form[name] for form in results(jnp.bfloat16))
    for a, b in zip(plain, cpu, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (a, b)), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("form", [forms.PLAIN, forms.CPU])
def test_the_first_of_equals_takes_the_gradient_of_a_pool(form):
    x = jnp.ones((1, 2, 2, 2, 1))
    with forms.use(form):
        gradient = jax.grad(lambda x: max_pool(x, (2, 2, 2), (1, 1, 1), ((0, 0),) * 3).sum())(x)
    np.testing.assert_array_equal(np.ravel(gradient), [1, 0, 0, 0, 0, 0, 0, 0])


def test_equals_in_overlapping_windows_are_told_apart_alike():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 4, 5, 6, 2)), jnp.float32)
    operation = pool((3, 3, 3), (2, 1, 1), ((1, 1),) * 3)
    found = []
    for form in (forms.PLAIN, forms.CPU):
        with forms.use(form):
            found.append(jax.jit(lambda x: outputs_and_gradients(operation, x))(x))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", [forms.PLAIN, forms.CPU])
def test_statistics_carry_no_gradient(form):
    def loss(x):
        _, mean, var = batch_normalise(x, jnp.ones(3), jnp.zeros(3), EPSILON)
        return mean.sum() + var.sum()

    with forms.use(form):
        assert not jax.grad(loss)(jnp.arange(12.0).reshape(1, 4, 3)).any()


def test_what_was_compiled_in_one_form_is_not_used_in_the_other():
    @jax.jit
    def chosen():
        return forms.choose(plain=lambda: 1, cpu=lambda: 2)()

    assert chosen() == 2, "tests run on CPUs"
    with forms.use(forms.PLAIN):
        assert chosen() == 1
    assert chosen() == 2


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="expected 'plain' or 'cpu', found 'fast'"):
        forms.use("fast")

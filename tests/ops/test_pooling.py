"""Max pools against XLA's, with the window rule of S3D."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops.pooling import max_pool, max_pool_from_start


def reduce_window(x, window, strides, padding):
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
    )


@pytest.mark.parametrize("size", [(4, 8, 8), (5, 7, 9), (1, 3, 2)])
def test_equals_reduce_window_in_value_and_gradient(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    arguments = ((3, 3, 3), (1, 1, 1), ((1, 1),) * 3)
    ours, gradient = jax.value_and_grad(lambda x: jnp.sum(max_pool(x, *arguments) ** 3))(x)
    expected, wanted = jax.value_and_grad(lambda x: jnp.sum(reduce_window(x, *arguments) ** 3))(x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2)])
def test_windows_start_at_multiples_of_the_stride_and_are_cut_off(length, window, stride):
    x = np.random.default_rng(length).normal(size=length).astype(np.float32)
    ours = max_pool_from_start(jnp.asarray(x)[None, None, None, :, None], (1, 1, window), (1, 1, stride))
    expected = [x[start : start + window].max() for start in range(0, length, stride)]
    np.testing.assert_array_equal(np.ravel(ours), expected)

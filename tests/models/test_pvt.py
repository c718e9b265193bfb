"""PVT v2: published size, frames on their own, and sizes that the reduction does not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.pvt import PyramidTransformer

SMALL = PyramidTransformer((4, 8, 8, 12), (1, 1, 1, 1), (1, 2, 2, 3), (2, 2, 2, 2))


def video(*sizes):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*sizes, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    made = SMALL.init(jax.random.key(0), video(1, 1, 64, 64))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), made)


def test_published_size():
    shapes = jax.eval_shape(lambda: PyramidTransformer().init(jax.random.key(0), video(1, 1, 32, 32)))
    classifier = 512 * 1000 + 1000
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) + classifier == 25_362_856


def test_frames_on_their_own(variables):
    clips = video(2, 3, 64, 96)
    maps = SMALL.apply(variables, clips)
    assert maps.shape == (2, 3, 2, 3, 12)
    alone = SMALL.apply(variables, clips[1:, 2:])
    np.testing.assert_allclose(maps[1:, 2:], alone, rtol=1e-4, atol=1e-5)


def test_sizes_that_the_reduction_does_not_divide(variables):
    assert SMALL.apply(variables, video(1, 1, 75, 36)).shape == (1, 1, 3, 2, 12)

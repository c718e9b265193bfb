"""SlowOnly: sizes, padded clips, and kept statistics of several groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.layers import BatchNorm
from vlm_jax.models.resnet3d import STRIDE, SlowOnly

SMALL = SlowOnly(blocks=(1, 1, 2, 1), width=0.125)


@pytest.fixture(scope="module")
def variables():
    made = SMALL.init(jax.random.key(0), jnp.zeros((1, 2, 32, 32, 3)))
    noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(1), x.shape), made)
    # Biases and means that are not 0 fill what is padded, unless it is cleared.
    return jax.tree.map(jnp.add, made, noise)


def test_published_size():
    shapes = jax.eval_shape(lambda: SlowOnly().init(jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 31_634_496


@pytest.mark.parametrize(("size", "cells"), [((64, 64), (4, 4)), ((40, 56), (3, 4)), ((33, 47), (3, 3))])
def test_stride_of_16_for_any_size(variables, size, cells):
    maps, extents = SMALL.apply(variables, jnp.zeros((1, 2, *size, 3)))
    assert STRIDE == 16
    assert extents is None
    assert maps["layer4"].shape[1:4] == (2, *cells)


def test_padded_clips_equal_clips_alone(variables):
    rng = np.random.default_rng(0)
    sizes = [(40, 56), (64, 33), (47, 64)]
    clips = [rng.normal(size=(1, 2, *size, 3)).astype(np.float32) for size in sizes]
    batch = np.full((3, 2, 64, 64, 3), 50.0, np.float32)
    for number, clip in enumerate(clips):
        batch[number, :, : clip.shape[2], : clip.shape[3]] = clip[0]
    maps, extents = SMALL.apply(variables, batch, extents=jnp.array(sizes))
    for number, clip in enumerate(clips):
        alone = SMALL.apply(variables, clip)[0]["layer4"]
        height, width = alone.shape[2:4]
        assert tuple(extents[number]) == (height, width)
        np.testing.assert_allclose(maps["layer4"][number, :, :height, :width], alone[0], rtol=1e-4, atol=1e-4)


def test_running_statistics_are_the_mean_over_groups():
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    together = BatchNorm(groups=2, running="mean")
    variables = together.init(jax.random.key(0), x, True)
    _, kept = together.apply(variables, x, True, mutable=["batch_stats"])
    alone = [BatchNorm().apply(variables, part, True, mutable=["batch_stats"])[1] for part in (x[:2], x[2:])]
    expected = jax.tree.map(lambda *parts: sum(parts) / 2, *alone)
    jax.tree.map(lambda ours, wanted: np.testing.assert_allclose(ours, wanted, rtol=1e-6), kept, expected)
    first = BatchNorm(groups=2).apply(variables, x, True, mutable=["batch_stats"])[1]
    jax.tree.map(lambda ours, wanted: np.testing.assert_allclose(ours, wanted, rtol=1e-6), first, alone[0])

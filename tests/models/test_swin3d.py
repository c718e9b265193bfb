"""Video Swin: windows, shifts, positions and stochastic depth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.swin3d import VideoSwin, fit_window, from_windows, relative_positions, to_windows, window_regions

SMALL = VideoSwin(features=4, depths=(2, 2), heads=(1, 2), window=(2, 3, 3), drop_path=0.5)


def video(*sizes, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*sizes, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    made = SMALL.init(jax.random.key(0), video(1, 3, 20, 28))
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), made)


def test_published_size():
    shapes = jax.eval_shape(lambda: VideoSwin().init(jax.random.key(0), video(1, 1, 32, 32)))
    image_head = 2 * (768 * 768 + 768)
    assert round((sum(leaf.size for leaf in jax.tree.leaves(shapes)) + image_head) / 1e6, 1) == 50.7


def test_a_short_axis_has_one_window_and_no_shift():
    assert fit_window((9, 7, 8), (8, 7, 7), (4, 3, 3)) == ((8, 7, 7), (4, 0, 3))
    assert fit_window((3, 2, 70), (8, 7, 7), (4, 3, 3)) == ((3, 2, 7), (0, 0, 3))


def test_windows_in_order_and_back():
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, (4, 6, 3)), indexing="ij"), -1)[None]
    windows = to_windows(places, (2, 3, 3))
    assert windows.shape == (1, 4, 18, 3)
    np.testing.assert_array_equal(windows[0, 1, 0], [0, 3, 0])
    np.testing.assert_array_equal(windows[0, 2, 1], [2, 0, 1])
    np.testing.assert_array_equal(from_windows(windows, (2, 3, 3), (4, 6, 3)), places)


@pytest.mark.parametrize("shift", [(1, 2, 1), (0, 2, 1), (1, 0, 0)])
def test_neighbours_are_those_that_the_shift_has_not_torn_apart(shift):
    size, window = (4, 8, 6), (2, 4, 3)
    regions = np.asarray(window_regions(size, window, shift))
    shifted = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    original = (shifted + shift) % size
    torn = np.zeros((*regions.shape, regions.shape[-1]), bool)
    for axis in range(3):
        moved = (np.asarray(to_windows(x[None, ..., axis : axis + 1], window))[0, :, :, 0] for x in (original, shifted))
        there, here = (x[:, :, None] - x[:, None] for x in moved)
        torn |= there != here
    np.testing.assert_array_equal(regions[:, :, None] != regions[:, None], torn)
    assert torn.any()


def test_rows_of_the_bias_table():
    places = list(itertools.product(range(2), range(3), range(3)))
    wanted = [[25 * (a - d + 1) + 5 * (b - e + 2) + c - f + 2 for d, e, f in places] for a, b, c in places]
    np.testing.assert_array_equal(relative_positions((2, 3, 3), 18), wanted)
    np.testing.assert_array_equal(relative_positions((2, 3, 3), 9), np.array(wanted)[:9, :9])


@pytest.mark.parametrize(
    ("size", "cells"), [((3, 20, 28), (3, 3, 4)), ((1, 9, 5), (1, 2, 1)), ((5, 24, 24), (5, 3, 3))]
)
def test_sizes_that_no_window_divides(variables, size, cells):
    assert SMALL.apply(variables, video(2, *size)).shape == (2, *cells, 8)


def test_shifted_windows_pass_information_on():
    """After two frames' window, only the shifted block lets the third frame see the first."""
    for depth, seen in ((1, False), (2, True)):
        model = VideoSwin(features=4, depths=(depth,), heads=(1,), window=(2, 3, 3))
        first = video(1, 4, 12, 12)
        variables = model.init(jax.random.key(0), first)
        variables = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), variables)
        # The first patch holds frames 0 and 1; windows hold two patches.
        gradient = jax.grad(lambda x, m=model, v=variables: (m.apply(v, x)[:, 2] ** 2).sum())(first)
        assert bool(jnp.abs(gradient[:, 0]).max() > 0) == seen


def test_stochastic_depth_is_off_in_evaluation(variables):
    clips = video(4, 3, 20, 28)
    calm = SMALL.apply(variables, clips)
    never = VideoSwin(4, (2, 2), (1, 2), (2, 3, 3), drop_path=0.0)
    np.testing.assert_array_equal(calm, never.apply(variables, clips))
    np.testing.assert_array_equal(calm, never.apply(variables, clips, train=True))
    key = {"rngs": {"drop_path": jax.random.key(5)}}
    dropped = SMALL.apply(variables, clips, train=True, **key)
    np.testing.assert_array_equal(dropped, SMALL.apply(variables, clips, train=True, **key))
    assert not np.allclose(dropped, calm)

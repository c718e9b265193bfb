"""Resizing with OpenCV's arithmetic; a golden case of lfb compares it with OpenCV itself."""

import numpy as np
import pytest

from vlm_jax.video.resize import resize

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)


@pytest.mark.parametrize("size", [(23, 31), (61, 97), (40, 60), (20, 30)])
def test_a_window_is_a_part_of_the_whole_picture(size):
    whole = resize(FRAMES, *size)
    assert whole.shape == (2, *size, 3)
    np.testing.assert_array_equal(resize(FRAMES, *size, (3, 5, 11, 13)), whole[:, 3:14, 5:18])


def test_halving_is_the_rounded_mean_of_four_pixels():
    parts = FRAMES.reshape(2, 20, 2, 30, 2, 3).astype(int).sum((2, 4))
    np.testing.assert_array_equal(resize(FRAMES, 20, 30), (parts + 2) >> 2)


def test_edges_and_constant_frames_keep_their_values():
    np.testing.assert_array_equal(
        resize(FRAMES, 80, 120)[:, [0, 0, -1, -1], [0, -1, 0, -1]], FRAMES[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    )
    for value in (0, 1, 127, 255):
        assert set(np.unique(resize(np.full((1, 7, 9, 3), value, np.uint8), 13, 23))) <= {value, max(value - 1, 0)}

"""Resizing with the arithmetic of OpenCV and of PyTorch; golden cases of lfb and snps3 compare it with theirs."""

import numpy as np
import pytest

from vlm_jax.video.resize import interpolate, resize

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


@pytest.mark.parametrize("size", [(23, 31), (61, 97), (40, 60), (20, 30), (1, 1)])
def test_interpolated_pixels_are_those_of_the_definition(size):
    found = interpolate(FRAMES, *size)
    assert (found.shape, found.dtype) == ((2, *size, 3), np.float32)
    for row, column in ((0, 0), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)):
        sums = np.zeros((2, 3))
        y, x = (max((n + 0.5) * old / new - 0.5, 0) for n, old, new in zip((row, column), (40, 60), size, strict=True))
        for down in (0, 1):
            for right in (0, 1):
                share = (1 - y % 1, y % 1)[down] * (1 - x % 1, x % 1)[right]
                sums += share * FRAMES[:, min(int(y) + down, 39), min(int(x) + right, 59)]
        np.testing.assert_allclose(found[:, row, column], sums, atol=1e-3)


def test_an_interpolated_window_is_a_part_of_the_whole_picture():
    whole = interpolate(FRAMES, 61, 97)
    np.testing.assert_array_equal(interpolate(FRAMES, 61, 97, (3, 5, 11, 13)), whole[:, 3:14, 5:18])
    np.testing.assert_array_equal(interpolate(FRAMES, 40, 60, (3, 5, 11, 13)), FRAMES[:, 3:14, 5:18])
    assert interpolate(FRAMES, 90, 130).max() <= 255

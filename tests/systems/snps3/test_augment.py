"""Operations of RandAugment against plain arithmetic."""

import numpy as np
import pytest

from vlm_jax.systems.snps3 import augment
from vlm_jax.systems.snps3.augment import OPERATIONS

RANDOM = np.random.default_rng(0)
VIDEO = RANDOM.integers(0, 256, (2, 9, 12, 3)).astype(np.uint8)
GREY = np.floor(VIDEO @ np.array([0.2989, 0.587, 0.114], np.float32))[..., None]


def mixed(other, factor):
    return np.clip(factor * VIDEO + (1 - factor) * other, 0, 255)


@pytest.mark.parametrize("level", [-1.0, -0.5, 0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "other"),
    [("brightness", 0.0), ("contrast", GREY.mean((1, 2, 3), keepdims=True)), ("saturation", GREY)],
)
def test_colours_are_mixed_and_truncated(name, other, level):
    found = OPERATIONS[name](VIDEO, level)
    difference = mixed(other, 1 + 0.9 * level) - found
    assert found.dtype == np.uint8
    assert (difference > -0.01).all()
    assert (difference < 1.01).all()


def test_sharpness_blurs_all_but_the_edges():
    found = augment.sharpness(VIDEO, -1.0)
    np.testing.assert_allclose(found[:, 0], VIDEO[:, 0], atol=1)  # mixed values are truncated
    np.testing.assert_allclose(found[:, :, -1], VIDEO[:, :, -1], atol=1)
    around = VIDEO[1, 3:6, 4:7].astype(int).sum((0, 1)) + 4 * VIDEO[1, 4, 5].astype(int)
    expected = 0.1 * VIDEO[1, 4, 5] + 0.9 * np.rint(around / 13)
    assert np.abs(found[1, 4, 5] - expected).max() <= 1
    small = VIDEO[:, :2]
    assert augment.sharpness(small, 1.0) is small


def test_colours_are_stretched_and_equalized():
    narrow = (VIDEO // 4 + 50).astype(np.uint8)
    stretched = augment.auto_contrast(narrow, 0.5)
    assert (stretched.min((1, 2)) == 0).all()
    assert (stretched.max((1, 2)) >= 254).all()
    flat = np.full((1, 4, 4, 3), 70, np.uint8)
    np.testing.assert_array_equal(augment.auto_contrast(flat, 0.5), flat)
    np.testing.assert_array_equal(augment.equalize(flat, 0.5), flat)
    wide = np.random.default_rng(1).integers(100, 120, (1, 64, 64, 3)).astype(np.uint8)
    equal = augment.equalize(wide, 0.5)
    assert len(np.unique(equal[..., 0])) == 20
    assert equal.max() > 240
    assert equal.min() < 15
    assert (
        np.diff(equal.reshape(-1, 3)[np.argsort(wide.reshape(-1, 3)[:, 0], kind="stable"), 0].astype(int)) >= 0
    ).all()


def test_values_are_inverted_posterized_and_solarized():
    np.testing.assert_array_equal(augment.invert(VIDEO, 0.9), 255 - VIDEO)
    np.testing.assert_array_equal(augment.posterize(VIDEO, 0.9), VIDEO // 128 * 128)  # one bit
    np.testing.assert_array_equal(augment.posterize(VIDEO, -0.4), VIDEO // 32 * 32)  # three bits
    assert not augment.posterize(VIDEO, 1.0).any()
    np.testing.assert_array_equal(augment.solarize(VIDEO, 0.9), np.where(VIDEO > 0, 255 - VIDEO, 0))


def test_pictures_are_shifted():
    # 0.45 * 20 columns are 9.
    video = RANDOM.integers(1, 256, (1, 20, 20, 3)).astype(np.uint8)
    found = augment.translate_x(video, 1.0)
    np.testing.assert_array_equal(found[:, :, :11], video[:, :, 9:])
    assert not found[:, :, 11:].any()
    found = augment.translate_y(video, -1.0)
    np.testing.assert_array_equal(found[:, 9:], video[:, :11])
    assert not found[:, :9].any()
    half = augment.translate_x(video, 1 / 18)  # half a column
    expected = np.rint((video[:, :, :-1].astype(float) + video[:, :, 1:]) / 2)
    assert np.abs(half[:, :, :-1] - expected).max() <= 1


def test_pictures_are_sheared_and_rotated():
    video = np.zeros((1, 41, 41, 3), np.uint8)
    video[:, 20] = 255  # a horizontal line through the centre
    turned = augment.rotate(video, 1.0)[0, ..., 0]
    rows = [int(turned[:, column].argmax()) for column in (10, 20, 30)]
    assert rows[1] == 20
    assert abs(rows[0] - rows[2]) == pytest.approx(20 * np.tan(np.pi / 6), abs=1)
    assert augment.rotate(video, -1.0)[0, :, 30, 0].argmax() == rows[0]
    sheared = augment.shear_y(video, 1.0)[0, ..., 0]
    steps = np.diff([sheared[:, column].argmax() for column in (14, 24, 34)])
    np.testing.assert_array_equal(steps, [-3, -3])
    upright = augment.shear_x(video.transpose(0, 2, 1, 3), 1.0)[0, ..., 0]
    np.testing.assert_array_equal(np.diff([upright[row].argmax() for row in (14, 24, 34)]), [-3, -3])


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 1)])
def test_every_operation_takes_pictures_of_any_size(name, size):
    video = RANDOM.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    for level in (-1.0, 0.0, 0.9):
        found = OPERATIONS[name](video, level)
        assert (found.shape, found.dtype) == (video.shape, np.uint8)


def test_half_of_two_operations_is_applied():
    unchanged = sum((augment.augment(VIDEO, np.random.default_rng(seed)) == VIDEO).all() for seed in range(200))
    assert 30 < unchanged < 75  # a quarter
    same = [augment.augment(VIDEO, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (augment.augment(VIDEO, np.random.default_rng(0), probability=0.0) == VIDEO).all()
    augment.augment(VIDEO, np.random.default_rng(0), operations=99, probability=1.0)

"""Points of a pyramid and what they answer for."""

import numpy as np
import pytest

from vlm_jax.systems.groundnlq.point_labels import RANGES, assign, points

SMALL = ((0, 4), (2, 8))


def by_hand(table, segments, radius):
    """One point and one segment at a time, one class."""
    classes, offsets = np.zeros((len(table), 1)), np.zeros((len(table), 2))
    for row, (place, low, high, stride) in enumerate(table):
        shortest = np.inf
        for start, end in segments:
            left, right, middle = place - start, end - place, (start + end) / 2
            near = abs(place - middle) < radius * stride if radius else True
            if left > 0 and right > 0 and near and low <= max(left, right) <= high and end - start < shortest:
                shortest = end - start
                classes[row], offsets[row] = 1, (left / stride, right / stride)
    return classes, offsets


def test_points_of_every_level():
    table = points(8, SMALL)
    assert table.tolist() == [[t, 0, 4, 1] for t in range(8)] + [[t, 2, 8, 2] for t in (0, 2, 4, 6)]
    assert len(points(2560)) == 2560 + 1280 + 640 + 320 + 160 + 80 + 40
    assert len(RANGES) == 7


def test_points_need_whole_levels():
    with pytest.raises(ValueError, match="100 positions are not a multiple of the last level's stride 64"):
        points(100)


@pytest.mark.parametrize("radius", [0, 1.5])
def test_assign_against_one_at_a_time(radius):
    rng = np.random.default_rng(0)
    table = points(64, RANGES[:4])
    for _ in range(20):
        middles, lengths = rng.uniform(0, 64, 5), rng.uniform(0.5, 40, 5)
        segments = np.stack([middles - lengths / 2, middles + lengths / 2], 1)
        ours, expected = assign(table, segments, radius=radius), by_hand(table, segments, radius)
        np.testing.assert_array_equal(ours[0], expected[0])
        np.testing.assert_allclose(ours[1], expected[1], rtol=1e-12)
        assert ours[0].any()


def test_the_ends_of_a_range_belong_to_it_and_those_of_a_segment_do_not():
    table = points(16, ((0, 4), (4, 8)), scale=1)
    classes, _ = assign(table, [[2, 10]], radius=0)
    fine, coarse = classes.reshape(2, 16)
    assert np.flatnonzero(fine).tolist() == [6]
    assert np.flatnonzero(coarse).tolist() == [3, 4, 5, 6, 7, 8, 9]


def test_the_first_of_equals_gives_distances_and_all_give_classes():
    table = points(8, ((0, 10),))
    segments = [[1.0, 5.0], [2.0, 6.0005]]
    classes, offsets = assign(table, segments, [1, 0], classes=3, radius=0)
    assert classes[3].tolist() == [1, 1, 0]
    assert offsets[3].tolist() == [2, 2]
    classes, _ = assign(table, [[1.0, 5.0], [2.0, 6.01]], [1, 0], classes=3, radius=0)
    assert classes[3].tolist() == [0, 1, 0]


def test_no_segments_no_targets():
    classes, offsets = assign(points(8, SMALL), np.zeros((0, 2)))
    assert (classes.shape, offsets.shape) == ((12, 1), (12, 2))
    assert not classes.any()
    assert not offsets.any()

"""Worked by hand from the rules: howto100m_loader.py of antoine77340/MIL-NCE_HowTo100M."""

import pytest

from vlm_jax.systems.milnce import captions


@pytest.mark.parametrize(
    ("start", "end", "caption", "expected"),
    [
        # To the left the bag would be 8 s long, to the right 15 s; then 20 s against 15 s.
        ([0, 7, 12, 20], [5, 10, 15, 22], 2, [1, 2]),
        ([0, 10, 12, 20], [5, 15, 15, 22], 1, [1, 2]),
        # 15 s both ways: to the right.
        ([0, 10, 20], [5, 15, 25], 1, [1, 2]),
        ([0, 10, 20], [5, 15, 25], 0, [0, 1]),
        ([0, 10, 20], [5, 15, 25], 2, [1, 2]),
    ],
)
def test_the_nearer_neighbour_comes_first(start, end, caption, expected):
    assert captions.candidates(start, end, caption, 2) == expected


def test_nearly_equal_times_decide():
    start, end = [0.99, 9.08, 17.17], [6.62, 11.22, 19.31]
    # 11.22 - 0.99 = 10.23 and 19.31 - 9.08 = 10.23 in decimals; in float64 the right one is less.
    assert end[2] - start[1] < end[1] - start[0]
    assert captions.candidates(start, end, 1, 2) == [1, 2]
    end[2] = 19.31000000000001
    assert end[2] - start[1] > end[1] - start[0]
    assert captions.candidates(start, end, 1, 2) == [0, 1]


def test_growing_stops_at_an_end():
    start, end = [0, 10, 12], [5, 11, 13]  # the right neighbour is nearer
    assert captions.first_candidate(start, end, 1, 4) == -1
    assert captions.candidates(start, end, 1, 4) == [0, 0, 1, 2]
    start, end = [0, 6, 20], [5, 8, 22]  # the left one
    assert captions.first_candidate(start, end, 1, 4) == 0
    assert captions.candidates(start, end, 1, 4) == [0, 1, 2, 2]


def test_short_lists_repeat_their_ends():
    start, end = [0, 10], [5, 15]
    assert captions.candidates(start, end, 0, 4) == [0, 1, 1, 1]
    assert captions.candidates(start, end, 1, 4) == [0, 0, 0, 1]


def test_the_beginning_is_looked_at_before_the_end():
    assert captions.first_candidate([3], [4], 0, 3) == 0
    assert captions.candidates([3], [4], 0, 3) == [0, 0, 0]


@pytest.mark.parametrize("caption", range(4))
def test_one_candidate_is_the_caption_itself(caption):
    assert captions.candidates([0, 1, 2, 3], [1, 2, 3, 4], caption, 1) == [caption]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3.9, 12.99, (3, 12)),  # long enough: cut to whole seconds
        (1.5, 6.5, (1, 6)),  # exactly min_time
        (10.9, 12.2, (9, 14)),  # 9.05 to 14.05
        (0.5, 1.5, (0, 5)),  # would begin at -1.5
        (5.0, 3.0, (1, 6)),  # ends before it begins: 1.5 to 6.5
    ],
)
def test_clip_interval(start, end, expected):
    assert captions.clip_interval(start, end, 5.0) == expected


@pytest.mark.parametrize(("interval", "last"), [((9, 14), 10), ((3, 12), 8), ((0, 2), 0), ((0, 3), 0), ((7, 11), 7)])
def test_seek_range(interval, last):
    assert captions.seek_range(interval, 3.2) == (interval[0], last)

"""Average precision by hand."""

import math

import numpy as np
import pytest

from vlm_jax.metrics.average_precision import average_precision


@pytest.mark.parametrize(
    ("scores", "hits", "positives", "expected"),
    [
        ([0.9, 0.8], [1, 1], 2, 1.0),
        ([0.9, 0.8, 0.7], [1, 0, 1], 2, 0.5 * 1 + 0.5 * 2 / 3),
        ([0.7, 0.9, 0.8], [1, 1, 0], 2, 0.5 * 1 + 0.5 * 2 / 3),
        # The precision at a hit is the largest one at it or after it.
        ([0.9, 0.8, 0.7, 0.6], [0, 1, 1, 1], 4, 3 * 0.25 * 3 / 4),
        ([0.9, 0.8], [0, 0], 3, 0.0),
        ([], [], 3, 0.0),
        # Among equal scores, the later one ranks first.
        ([0.5, 0.5], [1, 0], 1, 0.5),
        ([0.5, 0.5], [0, 1], 1, 1.0),
    ],
)
def test_by_hand(scores, hits, positives, expected):
    assert average_precision(np.array(scores), np.array(hits, bool), positives) == pytest.approx(expected, abs=1e-12)


def test_without_objects_there_is_no_average_precision():
    assert math.isnan(average_precision(np.array([0.5]), np.array([False]), 0))

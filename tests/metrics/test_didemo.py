"""DiDeMo's metrics, worked out by hand."""

import numpy as np
import pytest

from vlm_jax.metrics import didemo


def test_the_annotator_who_disagrees_does_not_count():
    truth = np.array([[0, 5], [0, 5], [0, 10], [20, 30]], float)
    found = np.array([[0, 5, 0.9], [0, 10, 0.5]])
    # The three best: ranks 1, 1, 2, mean 4/3; overlaps 1, 1, 1/2.
    metrics = didemo.metrics([found], [truth])
    assert metrics == pytest.approx({"didemo/Rank@1": 0.0, "didemo/Rank@5": 100.0, "didemo/mIoU": 250 / 3})
    agreed = didemo.metrics([found, np.zeros((0, 3))], [truth[[0, 0, 0, 3]], truth])
    assert agreed == pytest.approx({"didemo/Rank@1": 50.0, "didemo/Rank@5": 50.0, "didemo/mIoU": 50.0})


def test_a_moment_that_is_not_found_has_no_rank():
    truth = np.array([[0, 5]] * 4, float)
    metrics = didemo.metrics([np.array([[0, 4.9, 1.0]])], [truth])
    assert metrics["didemo/Rank@5"] == 0
    assert metrics["didemo/mIoU"] == pytest.approx(98.0)

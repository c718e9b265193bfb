"""Retrieval metrics worked by hand."""

import numpy as np
import pytest

from vlm_jax.metrics.retrieval import ranking_metrics, reference_metrics, tie_free_metrics


def test_ranks_by_hand():
    # Ranks of the matches, from 0: 0, 1, 2.
    similarity = np.array([[3.0, 1, 2], [5, 4, 3], [9, 8, 7]])
    ours = reference_metrics(similarity)
    assert ours == {"R@1": 1 / 3, "R@5": 1.0, "R@10": 1.0, "median_rank": 2.0, "entries": 3.0}
    assert tie_free_metrics(similarity) == {key: ours[key] for key in ("R@1", "R@5", "R@10", "median_rank")}


def test_ties_count_every_position():
    # Row 0: the match ties with one other at the top: positions 0 and 1. Row 1: first.
    similarity = np.array([[2.0, 2], [1, 3]])
    ours = reference_metrics(similarity)
    assert ours["entries"] == 3
    assert ours["R@1"] == pytest.approx(2 / 3)
    assert ours["median_rank"] == 1
    assert tie_free_metrics(similarity)["R@1"] == 1.0
    assert tie_free_metrics(similarity)["median_rank"] == 1.25


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones(3), np.ones((0, 0)), np.array([[np.nan]])])
def test_what_is_no_similarity_matrix(bad):
    with pytest.raises(ValueError, match="retrieval"):
        reference_metrics(bad)


def test_the_best_of_several_matches_counts():
    similarity = np.array([[5.0, 4, 3, 2], [1, 2, 3, 4], [0, 9, 8, 7]])
    ours = ranking_metrics(similarity, [[2, 1], [0], [1, 3]])  # positions 1, 3, 0
    assert ours == {
        "R@1": 1 / 3,
        "R@5": 1.0,
        "R@10": 1.0,
        "median_rank": 2.0,
        "mean_recall": pytest.approx((1 / 3 + 2) / 3),
    }


def test_of_equal_scores_the_lower_index_comes_first():
    equal = np.ones((1, 12))
    assert [ranking_metrics(equal, [[match]])["median_rank"] for match in (0, 4, 11)] == [1, 5, 12]
    assert ranking_metrics(equal, [[11, 3, 7]])["median_rank"] == 4


@pytest.mark.parametrize("truths", [[[0]], [[0], []], [[0], [0], [0]]])
def test_matches_that_do_not_fit(truths):
    with pytest.raises(ValueError, match="expected the matches of 2 queries"):
        ranking_metrics(np.ones((2, 3)), truths)

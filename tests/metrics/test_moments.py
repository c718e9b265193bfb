"""Recall of moments, worked out by hand."""

import numpy as np
import pytest

from vlm_jax.metrics import moments


def test_overlap_over_the_hull():
    ours = moments.hull_overlap([[0, 4], [0, 1], [2, 2], [0, 2]], [[2, 6], [3, 4], [2, 2], [1, 1]])
    np.testing.assert_array_equal(ours, [2 / 6, 0, np.nan, 0])


def test_the_best_truth_counts_and_an_instant_is_a_miss():
    overlaps = moments.best_overlaps([[0, 4, 0.9], [10, 10, 0.8]], [[1, 4], [10, 10], [0, 5]])
    np.testing.assert_allclose(overlaps, [0.8, 0])
    assert moments.best_overlaps([], [1, 2]).shape == (0,)


def test_recall_is_strict_or_not():
    predictions = [[[0, 8, 0.5], [0, 4, 0.4]], [[50, 60, 0.9]], []]
    truths = [[0, 4], [0, 4], [0, 4]]
    strict = moments.recall_table(predictions, truths, (0.5, 0.4), (1, 2))
    np.testing.assert_allclose(strict, [[0, 1 / 3], [1 / 3, 1 / 3]])
    loose = moments.recall_table(predictions, truths, (0.5,), (1,), strict=False)
    np.testing.assert_allclose(loose, [[1 / 3]])
    assert moments.mean_top_overlap(predictions, truths) == pytest.approx(0.5 / 3)


def test_metrics_by_name_in_percent():
    predictions, truths = [[[0, 4], [9, 10]], [[0, 1], [0, 4]]], [[0, 4], [0, 4]]
    assert moments.moment_metrics(predictions, truths) == {
        "R1@0.3": 50.0,
        "R1@0.5": 50.0,
        "R5@0.3": 100.0,
        "R5@0.5": 100.0,
        "mean_R1": 50.0,
        "mean_R5": 100.0,
        "mIoU": 62.5,
    }


def test_means_are_over_the_challenge_s_thresholds_whatever_is_reported():
    predictions, truths = [[[0, 4]], [[0, 10]]], [[0, 10], [0, 10]]
    found = moments.moment_metrics(predictions, truths, (0.3, 0.5, 0.7))
    assert (found["R1@0.3"], found["R1@0.5"], found["R1@0.7"]) == (100, 50, 50)
    assert found["mean_R1"] == 75
    assert moments.moment_metrics(predictions, truths, (0.7,))["mean_R1"] == 75


def test_average_precision_by_hand():
    """The second prediction finds the first truth again, which counts as wrong; the fourth finds the second truth."""
    truths = [[0, 10], [20, 30]]
    predictions = [[0, 10, 0.9], [1, 10, 0.8], [50, 60, 0.7], [20, 26, 0.6], [20, 30, 0.5]]
    np.testing.assert_allclose(
        moments.average_precisions(predictions, truths, (0.5, 0.75, 0.95)),
        [(1 + 2 / 4) / 2, (1 + 2 / 5) / 2, (1 + 2 / 5) / 2],
    )
    assert moments.average_precisions(predictions, truths, (0.5,), most=3)[0] == 0.5
    assert moments.average_precisions([], truths, (0.5,))[0] == 0


def test_a_later_better_precision_counts_for_the_truths_before_it():
    """Wrong, right, right: precisions 1/2 and 2/3, of which the better stands for both."""
    truths = [[0, 10], [20, 30]]
    predictions = [[50, 60], [0, 10], [20, 30]]
    assert moments.average_precisions(predictions, truths, (0.5,))[0] == pytest.approx(2 / 3)


def test_mean_average_precision_in_percent():
    predictions, truths = [[[0, 8]], [[0, 6]]], [[[0, 10]], [[0, 10]]]
    found = moments.precision_metrics(predictions, truths)
    assert found == pytest.approx({"mAP@0.5": 100.0, "mAP@0.75": 50.0, "mAP": 50.0})


def made_annotations():
    queries = [{"clip_start_sec": 1.0, "clip_end_sec": 2.0}, {"clip_start_sec": 3.0, "clip_end_sec": 5.0}]
    annotation = {"annotation_uid": "a", "language_queries": queries}
    return {"videos": [{"clips": [{"clip_uid": "c", "annotations": [annotation]}]}]}


def result(number, times):
    return {"clip_uid": "c", "annotation_uid": "a", "query_idx": number, "predicted_times": times}


def test_the_file_decides_what_is_judged():
    results = [result(1, [[3.0, 5.0, 0.5]]), result(1, [[3.0, 5.0, 0.5]]), result(0, [[8.0, 9.0, 0.1]])]
    predictions, truths = moments.ego4d_pairs(results, made_annotations())
    assert [truth.tolist() for truth in truths] == [[3, 5], [3, 5], [1, 2]]
    np.testing.assert_allclose(moments.recall_table(predictions, truths, (0.5,), (1,)), [[2 / 3]])


def test_a_query_without_truth_is_named():
    with pytest.raises(ValueError, match="clip c, annotation a has no query 2"):
        moments.ego4d_pairs([result(2, [])], made_annotations())

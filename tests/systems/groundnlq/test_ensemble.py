"""Merging result files."""

import pytest

from vlm_jax.systems.groundnlq.ensemble import ensemble, fuse_first, merge


def test_fusing_means_the_best_and_the_middle_one():
    fused = fuse_first([[10, 20, 0.5], [10.5, 21, 0.8], [60, 70, 0.9]])
    assert fused == [[10.5, 21.0, 0.8, 0, 1.3], [60.0, 70.0, 0.9, 0, 0.9]]


def test_two_seconds_part_and_less_is_chained():
    assert len(fuse_first([[10, 20, 0.5], [12, 22, 0.5], [14, 24, 0.5]])) == 3
    chained = fuse_first([[10, 20, 0.5], [11.9, 21.9, 0.6], [13.8, 23.8, 0.5]])
    assert chained == [[11.9, 21.9, 0.6, 0, 1.6]]


def test_of_equal_middles_the_last_counts():
    assert fuse_first([[10, 20, 0.9], [9, 21, 0.5], [8, 22, 0.4]]) == [[8.0, 22.0, 0.4, 0, 0.4]]


def test_merging_drops_what_overlaps_and_pads_with_the_last():
    first = [[0, 10, 0.9], [0, 9, 0.8], [20, 30, 0.7]]
    assert merge([first, first[:1]]) == [[0, 10], [20, 30], [20, 30], [20, 30], [20, 30]]


def test_of_equal_scores_the_first_file_wins():
    """By Python's stable sort, as the reference has it: the files in their order, then what they agree on."""
    merged = merge([[[10, 20, 0.5]], [[12, 22, 0.5]], [[14, 24, 0.5]]])
    assert merged == [[10, 20], [14, 24], [14, 24], [14, 24], [14, 24]]
    # A file's own moment before the fused one of the same score, though the fused one is the better supported.
    merged = merge([[[0, 10, 0.5]], [[1, 10, 0.5]]])
    assert merged[0] == [0, 10]


def test_four_of_each_file():
    times = [[10 * n, 10 * n + 5, 0.9 - 0.1 * n] for n in range(5)]
    assert merge([times]) == [[0, 5], [10, 15], [20, 25], [30, 35], [30, 35]]


def file(*names, times=((1.0, 2.0, 0.5),)):
    results = [
        {"clip_uid": clip, "annotation_uid": "a", "query_idx": number, "predicted_times": list(times)}
        for clip, number in names
    ]
    return {"version": "1.0", "results": results}


def test_other_fields_are_the_first_files():
    ours = ensemble([file(("c", 0)), file(("c", 0))])
    assert ours["version"] == "1.0"
    assert ours["results"][0] == {
        "clip_uid": "c",
        "annotation_uid": "a",
        "query_idx": 0,
        "predicted_times": [[1.0, 2.0]] * 5,
    }


def test_the_first_difference_is_named():
    message = "result 1 is query 1 of annotation a, clip c in file 1 and query 0 of annotation a, clip d in file 3"
    with pytest.raises(ValueError, match=message):
        ensemble([file(("c", 0), ("c", 1)), file(("c", 0), ("c", 1)), file(("c", 0), ("d", 0))])
    with pytest.raises(ValueError, match="file 1 has 2 results and file 2 has 1"):
        ensemble([file(("c", 0), ("c", 1)), file(("c", 0))])
    with pytest.raises(ValueError, match="file 2 has no predictions for query 0 of annotation a, clip c"):
        ensemble([file(("c", 0)), file(("c", 0), times=())])

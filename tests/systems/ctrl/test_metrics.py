"""CTRL's counts and files: what counts, what does not, and empty sets."""

import json

import numpy as np
import pytest

from vlm_jax.systems.ctrl.metrics import (
    Answers,
    correct_counts,
    predictions_text,
    query_line,
    results_text,
    summarize,
)

NONE = [np.nan] * 3


def answers(best, truth, windows=9, video="a.avi"):
    best = np.array(best, np.float64).reshape(len(truth), -1 if truth else 1, 3)
    return Answers(video, np.array(truth, np.float64).reshape(-1, 2), windows, {0.5: best, 0.7: best})


def test_just_as_much_is_right_and_an_empty_place_is_not():
    best = [[[0, 50, 9.0], NONE], [[0, 49, 9.0], [0, 100, 8.0]], [NONE, NONE], [[0, 71, 9.0], NONE]]
    counts = correct_counts(answers(best, [[0, 100]] * 4), (1, 2))
    assert counts.tolist() == [[2, 3], [1, 2]]


def test_degenerate_segments_are_wrong():
    best = [[[40, 10, 9.0]], [[50, 50, 9.0]], [[-5, -9, 9.0]]]
    assert not correct_counts(answers(best, [[0, 100], [50, 50], [0, 100]]), (1,)).any()


def test_sentences_are_averaged_not_videos():
    first = answers([[[0, 100, 1.0]]], [[0, 100]])
    second = answers([[[0, 60, 1.0]], [[500, 600, 1.0]], [NONE]], [[0, 100]] * 3, video="b.avi")
    summary = summarize([first, second], (1, 5))
    recalls = [value for name, value in summary.items() if name.startswith("R@1,")]
    assert summary["mean_R@1"] == pytest.approx(np.mean(recalls))
    assert summary["R@1,IoU=0.5"] == summary["R@5,IoU=0.5"] == 0.5
    assert summary["R@1,IoU=0.7"] == 0.25
    assert summary["mIoU"] == pytest.approx((1 + 0.6) / 4)
    assert (summary["sentences"], summary["sentences_without_windows"]) == (4, 0)


def test_sentences_of_videos_without_windows():
    found = [
        answers([[[0, 100, 1.0]]], [[0, 100]]),
        answers([NONE, NONE, NONE], [[0, 9]] * 3, windows=0, video="b.avi"),
    ]
    summary = summarize(found, (1,))
    assert (summary["R@1,IoU=0.5"], summary["sentences"], summary["sentences_without_windows"]) == (1.0, 1, 3)
    summary = summarize(found, (1,), count_videos_without_windows=True)
    assert (summary["R@1,IoU=0.5"], summary["mIoU"], summary["sentences"]) == (0.25, 0.25, 4)
    assert list(json.loads(predictions_text(found))["results"]) == ["a.avi"]


@pytest.mark.parametrize("found", [[], [answers([], [])], [answers([NONE], [[0, 9]], windows=0)]])
def test_nothing_to_judge(found):
    with pytest.raises(ValueError, match="no sentence to judge"):
        summarize(found, (1,))


def test_texts():
    found = [answers([[[1.5, 2.0, 9.0]], [NONE], [[3.0, 4.0, 1.0]]], [[0, 9]] * 3)]
    read = json.loads(predictions_text(found))
    assert read == {"version": "VERSION 1.0", "results": {"a.avi": [[0, 1.5, 2.0], [2, 3.0, 4.0]]}, "external_data": {}}
    read = json.loads(results_text({"R@1,IoU=0.5": 0.25, "R@5,IoU=0.5": 0.5, "mIoU": 0.1}))
    assert read["results"] == {"best_R1_IOU5": 0.25, "best_R5_IOU5": 0.5}


def test_a_sentence_s_segments_end_with_the_video_where_its_length_is_known():
    best = np.array([[-5.0, 40, 0.9], [80, 120, 0.8], [101, 130, 0.7], [np.nan, np.nan, np.nan]])
    line = query_line("q", "v", "text", best, 10, 100)
    assert line["frames"] == [[0.0, 40.0, 0.9], [80.0, 100.0, 0.8]]
    assert line["seconds"] == [[0.0, 4.0, 0.9], [8.0, 10.0, 0.8]]
    assert query_line("q", "v", "text", best, 0)["frames"] == best[:3].tolist()

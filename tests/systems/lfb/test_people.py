"""Boxes of people: those of OpenCV's detector, and those of csv files of other detectors."""

import sys

import numpy as np
import pytest

from vlm_jax.errors import DataError, MissingPackageError
from vlm_jax.systems.lfb.boxes import boxes_of, read_boxes
from vlm_jax.systems.lfb.people import MOST_PEOPLE, best_boxes, people_detector
from vlm_jax.video import decode

TRUTH = {
    1: [(0.243, 0.113, 0.427, 0.990)],
    4: [(0.179, 0.118, 0.335, 0.933), (0.441, 0.063, 0.634, 0.996)],
    8: [(0.222, 0.113, 0.377, 0.941), (0.472, 0.038, 0.689, 0.996)],
}
"""People of chaplin.mp4 by second, drawn by hand."""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def iou(one, other):
    sides = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    shared = np.prod(np.maximum(sides, 0))
    return shared / (np.prod(one[2:4] - one[:2]) + np.prod(other[2:4] - other[:2]) - shared)


def test_opencv_finds_chaplin_and_the_policeman(root):
    find = people_detector("opencv")
    for second, truth in TRUTH.items():
        frame = decode.read_clip(root / "data_prep/clips/chaplin.mp4", start=second, num_frames=1, fps=25)[0]
        found = find(frame)
        assert found.dtype == np.float32
        assert len(found) == len(truth), "one box per person"
        assert all(max(iou(box, np.array(person)) for box in found) > 0.5 for person in truth)
        assert (np.diff(found[:, 4]) <= 0).all()
        assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (64, 64)])
def test_opencv_finds_nobody_in_an_empty_frame(size):
    assert people_detector("opencv")(np.full((*size, 3), 90, np.uint8)).shape == (0, 5)


def test_the_whole_frame_is_one_box():
    np.testing.assert_array_equal(people_detector("frame")(np.zeros((4, 6, 3), np.uint8)), [[0, 0, 1, 1, 1]])


def test_one_box_per_person():
    """A part of a person, a group, a weak box and an empty one are dropped; a neighbour is kept."""
    boxes = [(0.1, 0.1, 0.3, 0.9), (0.12, 0.5, 0.28, 0.9), (0, 0, 1, 1), (0.25, 0.1, 0.5, 0.9), (0.6, 0.1, 0.8, 0.9)]
    found = best_boxes(np.array([*boxes, (1, 0.2, 1, 0.6)]), np.array([2.0, 1.5, 1.2, 1.1, 0.1, 3.0]))
    np.testing.assert_allclose(found[:, :4], np.array(boxes)[[0, 3]], rtol=1e-6)
    np.testing.assert_allclose(found[:, 4], [0.8808, 0.7503], atol=1e-4)
    edges = np.linspace(0, 1, 101)
    many = np.stack([edges[:-1], np.zeros(100), edges[1:], np.ones(100)], axis=1)
    assert len(best_boxes(many, np.ones(100))) == MOST_PEOPLE


def test_detectors_are_named(monkeypatch):
    with pytest.raises(DataError, match="detector: 'yolo' is not one of opencv, frame"):
        people_detector("yolo")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"this needs the package cv2: pip install 'vlm_jax\[people\]'"):
        people_detector("opencv")


@pytest.mark.parametrize(
    "text",
    [
        "film,3,0.1,0.2,0.5,0.6,0.75\nfilm,3,0.5,0.2,0.9,1.0,1\nfilm,1,0,0,1,1,1\n",
        "\ufeffvideo,second,x1,y1,x2,y2,score\nfilm,0003,.1,.2,.5,.6,0.75\n\nfilm,3.0,0.5,0.2,0.9,1.04,\nfilm,1,-.01,0,1,1,1\n",
        "score,y2,x2,y1,x1,timestamp,video_id\n0.75,0.6,0.5,0.2,0.1,3,film\n1,1,0.9,0.2,0.5,3,film\n1,1,1,0,0,1,film\n",
    ],
)
def test_boxes_of_any_detector(tmp_path, text):
    found = read_boxes(write(tmp_path / "boxes.csv", text))
    assert list(found) == ["film"]
    assert list(found["film"]) == [1, 3]
    expected = np.array([(0.1, 0.2, 0.5, 0.6, 0.75), (0.5, 0.2, 0.9, 1, 1)])
    np.testing.assert_array_equal(found["film"][3], expected)
    np.testing.assert_array_equal(found["film"][1], [[0, 0, 1, 1, 1]])


def test_files_in_ava_form(tmp_path):
    """A row per label of a person, whose last columns are no score, and a keyframe without people."""
    rows = ["a,0902,0.1,0.2,0.5,0.6,12,0", "a,0902,0.1,0.2,0.5,0.6,80,0", "a,0902,0.5,0.2,0.9,1.0,12,1"]
    found = boxes_of(write(tmp_path / "ava.csv", "\n".join([*rows, "a,0903"])), "a")
    np.testing.assert_allclose(found[902], [(0.1, 0.2, 0.5, 0.6, 1), (0.5, 0.2, 0.9, 1, 1)], rtol=1e-6)
    assert found[903].shape == (0, 5)


def test_videos_are_found_with_or_without_their_ending(tmp_path):
    path = write(tmp_path / "boxes.csv", "film.mp4,1,0,0,1,1\nother,1,0,0,1,1\n")
    assert list(boxes_of(path, "film")) == [1]
    assert list(boxes_of(path, "other")) == [1]
    with pytest.raises(DataError, match=r"boxes\.csv: no boxes of the video absent; it has film\.mp4, other$"):
        boxes_of(path, "absent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("film,1,10,20,300,200\n", r"line 1: x1 is 10, expected a fraction .* in \[0, 1\]; divide pixels by the size"),
        ("film,1,0.5,0.2,0.5,0.6\n", r"line 1: the box \[0\.5, 0\.2, 0\.5, 0\.6\] is empty, expected x1 < x2"),
        ("film,1.5,0,0,1,1\n", r"line 1: second is 1\.5, expected a whole number"),
        ("film,-1,0,0,1,1\n", "line 1: second is -1, expected a whole number"),
        ("film,1,0,0,1,1\nfilm,2,0,zero,1,1\n", "line 2: y1 is 'zero', expected a number"),
        ("film,1,0,0,1,nan\n", "line 1: y2 is 'nan', expected a number"),
        ("film,1,0,0,1\n", "line 1: 5 columns, expected video, second, x1, y1, x2, y2"),
        ("video,second,x1,y1\nfilm,1,0,0\n", "no column x2, y2; expected video, second"),
        ("video,second,x1,y1,x2,y2\nfilm,1,0,0,1\n", "line 2: 5 columns, expected 6 as in the header"),
        ("", r"boxes\.csv: no boxes; expected rows of video, second"),
        ("video,second,x1,y1,x2,y2\n", r"boxes\.csv: no boxes"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_boxes(write(tmp_path / "boxes.csv", text))
    with pytest.raises(DataError, match=r"absent\.csv: No such file"):
        read_boxes(tmp_path / "absent.csv")

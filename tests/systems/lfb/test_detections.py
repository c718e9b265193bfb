"""Detections as csv, table and JSON, and csv files with faults."""

import numpy as np
import pytest

from vlm_jax.errors import DataError
from vlm_jax.systems.lfb import detections as module
from vlm_jax.systems.lfb.detections import Detections, csv_lines, read_csv, to_json, to_table, write_csv


def make(rng, counts=(2, 0, 3, 1), actions=7):
    counts = np.array(counts)
    total = counts.sum()
    low = rng.random((total, 2)) / 2
    boxes = np.concatenate([low, low + rng.random((total, 2)) / 2], 1).astype(np.float32)
    videos = [("a", "b-_", "a", "c")[number % 4] for number in range(len(counts))]
    return Detections(videos, 902 + np.arange(len(counts)), counts, boxes, rng.random((total, actions), np.float32))


def assert_equal_tables(ours, expected):
    for name in expected._fields:
        found, wanted = getattr(ours, name), getattr(expected, name)
        np.testing.assert_array_equal(found, wanted, name)
        assert name == "keyframes" or found.dtype == wanted.dtype, name


@pytest.mark.parametrize("threshold", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("action_ids", [None, (0, 3, 11, 17, 40, 63, 80)])
def test_the_table_is_the_one_that_the_file_gives(tmp_path, monkeypatch, threshold, action_ids):
    monkeypatch.setattr(module, "_CHUNK", 5)
    monkeypatch.setattr(module, "_ITEMS", 2)
    made = make(np.random.default_rng(0), (2, 0, 3, 1, 40, 0))
    write_csv(tmp_path / "detections.csv", made, threshold, action_ids)
    ours = to_table(made, threshold, action_ids)
    assert_equal_tables(ours, read_csv(tmp_path / "detections.csv"))
    assert len(ours.actions) == {0.0: 46 * 6, -1.0: 46}.get(threshold, len(ours.actions))
    assert set(ours.actions) <= set(action_ids or range(1, 7))


def test_numbers_are_rounded_as_text_is():
    values = np.random.default_rng(0).random(20000, np.float32)
    ties = np.arange(2001, dtype=np.float32) / 2**11  # some lie in the middle of two decimals
    for number in (values, ties):
        expected = [float(f"{value:.4f}") for value in number.tolist()]
        np.testing.assert_array_equal(module.round_numbers(number), expected)


def test_a_single_label_is_the_best_column_but_0():
    scores = np.array([[0.9, 0.1, 0.3], [0.0, 0.5, 0.5], [0.1, np.nan, 0.2], [0.1, np.nan, np.nan]], np.float32)
    made = Detections.from_rows([("v", 902, np.tile(np.float32([0, 0, 1, 0.5]), (4, 1)), scores)])
    assert list(csv_lines(made, -1.0)) == [
        "v,902,0.0000,0.0000,1.0000,0.5000,1,0.5000\n",
        "v,902,0.0000,0.0000,1.0000,0.5000,2,0.3000\n",
        "v,902,0.0000,0.0000,1.0000,0.5000,2,0.2000\n",
    ]


def test_scores_and_boxes_that_are_no_numbers_are_no_detections():
    boxes = np.array([[0, 0, 1, 1], [0, 0, np.nan, 1]], np.float32)
    scores = np.array([[0, 0.25, np.nan], [0, 1, 1]], np.float32)
    made = Detections.from_rows([("v", 902, boxes, scores)])
    for threshold in (0.0, -1.0):
        assert list(csv_lines(made, threshold)) == ["v,902,0.0000,0.0000,1.0000,1.0000,1,0.2500\n"]


def test_a_score_must_exceed_the_threshold():
    made = Detections.from_rows([("v", 1, np.zeros((1, 4), np.float32), np.array([[1, 0.0, 0.5]], np.float32))])
    assert len(list(csv_lines(made, 0.0))) == 1
    assert not list(csv_lines(made, 0.5))


def test_json_lists_the_actions_of_a_box_from_the_best_on():
    made = make(np.random.default_rng(1), (1, 0, 2), actions=4)
    found = to_json(made, {1: "sit", 3: "walk"}, 0.0)
    assert [(entry["video"], entry["second"], len(entry["boxes"])) for entry in found] == [
        ("a", 902, 1),
        ("b-_", 903, 0),
        ("a", 904, 2),
    ]
    box = found[2]["boxes"][1]
    assert box["box"] == [float(f"{value:.4f}") for value in made.boxes[2].tolist()]
    expected = sorted([(-made.scores[2, 1], 1, "sit"), (-made.scores[2, 3], 3, "walk")])
    assert [(-action["score"], action["id"], action["name"]) for action in box["actions"]] == [
        (pytest.approx(score, abs=5e-5), *rest) for score, *rest in expected
    ]
    renamed = to_json(made, {40: "jump"}, -1.0, (0, 10, 20, 40))
    assert {a["id"] for entry in renamed for each in entry["boxes"] for a in each["actions"]} <= {40}


def test_a_keyframe_that_comes_twice_is_an_error():
    made = make(np.random.default_rng(0))._replace(seconds=np.array([902, 903, 902, 902]))
    with pytest.raises(DataError, match=r"^detections: second 902 of video 'a' comes twice$"):
        to_table(made)


def test_annotations_have_a_person_or_nothing_in_the_last_column(tmp_path):
    path = tmp_path / "ava.csv"
    path.write_text("v,0902,0.1,0.2,0.3,0.4,12,7\n\nw,903,0,0,1,1,80\nv,902,0.1,0.2,0.3,0.4,17,7\n")
    table = read_csv(path)
    assert table.keyframes == [("v", 902), ("w", 903)]
    assert table.frames.tolist() == [0, 1, 0]
    assert table.actions.tolist() == [12, 80, 17]
    assert table.scores.tolist() == [7, 1, 7]
    np.testing.assert_array_equal(table.boxes[0], np.float32([0.1, 0.2, 0.3, 0.4]))


def test_a_header_a_byte_order_mark_and_seconds_with_a_point(tmp_path):
    path, plain = tmp_path / "ava.csv", tmp_path / "plain.csv"
    rows = "v,902.0,0.1,0.2,0.3,0.4,12,7\nv,903.0,0.1,0.2,0.3,0.4,17,7\n"
    path.write_text("\ufeffvideo_id,second,x1,y1,x2,y2,action,person\n" + rows, encoding="utf-8")
    plain.write_text(rows.replace("02.0", "02").replace("03.0", "03"))
    assert_equal_tables(read_csv(path), read_csv(plain))


GOOD = "v,0902,0.1,0.2,0.3,0.4,12,0.5\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("v,902,0.1,0.2,0.3", "'v,902,0.1,0.2,0.3'"),
        ("v,902,0.1,0.2,0.3,0.4,12,0.5,1", "'v,902,0.1,0.2,0.3,0.4,12,0.5,1'"),
        ("v,x,0.1,0.2,0.3,0.4,12,0.5", "'v,x,"),
        ("v,902.5,0.1,0.2,0.3,0.4,12,0.5", "'v,902.5"),
        ("v,902,0.1,0.2,0.3,0.4,walk,0.5", "'v,902"),
        ("v,902,nan,0.2,0.3,0.4,12,0.5", "'v,902,nan"),
        ("v,902,0.1,0.2,0.3,0.4,12,inf", "'v,902"),
        ("v,902,0.3,0.2,0.1,0.4,12,0.5", "'v,902,0.3"),
        ("v,902,0.1,0.4,0.3,0.2,12,0.5", "'v,902,0.1"),
        ("v,-902,0.1,0.2,0.3,0.4,12,0.5", "'v,-902"),
    ],
)
def test_the_line_with_a_fault_is_named(tmp_path, monkeypatch, line, shown):
    monkeypatch.setattr(module, "_CHUNK", 4)
    path = tmp_path / "faulty.csv"
    path.write_text(GOOD * 5 + "\n" + line + "\n" + GOOD)
    with pytest.raises(DataError) as caught:
        read_csv(path)
    assert str(caught.value).startswith(f"{path}, line 7: expected video,second,x1,y1,x2,y2,action[,score] with")
    assert f"found {shown}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.csv").write_text("\n\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty", "has no rows"), ("binary", "not a text file in UTF-8"), ("none", "No such file")):
        with pytest.raises(DataError, match=message):
            read_csv(tmp_path / f"{name}.csv")

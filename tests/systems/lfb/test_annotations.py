"""Annotations of AVA: actions, rows, exclusion, proposals, frames."""

import pickle

import numpy as np
import pytest

from vlm_jax.errors import DataError, UserError
from vlm_jax.systems.lfb import annotations
from vlm_jax.systems.lfb.actions import AVA_ACTIONS, EVALUATED, columns, read_actions, write_label_map
from vlm_jax.systems.lfb.annotations import Sampling


def write(folder, *lines):
    path = folder / "a.csv"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_actions():
    assert (len(AVA_ACTIONS), len(EVALUATED)) == (80, 60)
    assert (AVA_ACTIONS[12], AVA_ACTIONS[64], AVA_ACTIONS[80]) == ("stand", "fight/hit (a person)", "watch (a person)")
    assert columns((17, 80), 3) == {17: 1, 80: 2}
    assert columns((17, 80), 81) == {17: 17, 80: 80}


def test_label_maps_are_read_as_written(tmp_path):
    path = tmp_path / "list.pbtxt"
    write_label_map(path, {number: AVA_ACTIONS[number] for number in EVALUATED})
    assert read_actions(path) == {number: AVA_ACTIONS[number] for number in EVALUATED}
    path.write_text('item {\n  name: "sit"\n  label_id: 11\n  label_type: PERSON_MOVEMENT\n}\n')
    assert read_actions(path) == {11: "sit"}
    (tmp_path / "list.csv").write_text("action_id,name\n2,run\n1,walk\n")
    assert read_actions(tmp_path / "list.csv") == {1: "walk", 2: "run"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no action"),
        ("  id: 3\n", "line 1: an id without a name"),
        ('  name: "a"\n  id: 0\n', "has the id 0"),
        ('  name: "a"\n  id: 1\n  name: "b"\n  id: 1\n', "belongs to 'a' and to 'b'"),
    ],
)
def test_label_maps_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "list.pbtxt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_actions(tmp_path / "list.pbtxt")


def test_every_bad_row_has_its_reason(tmp_path):
    lines = {
        "a,902,0.1,0.1,0.5,0.5,12,0": None,
        "a,0902.0,0.1,0.1,0.5,0.5,12": ("row that occurs twice", True),
        "a,902,0.1,0.1,0.1,0.5,12,0": ("box without area", True),
        "a,902,10,10,300,200,12,0": ("box outside of 0 to 1", False),
        "a,902,0.5,0.1,0.1,0.5,12,0": ("box that ends before it begins", False),
        "a,902,0.1,0.1,0.5,0.5,0,0": ("action that is not one of 1 to 80", False),
        "a,902,0.1,0.1,0.5,0.5,81,0": ("action that is not one of 1 to 80", False),
        "a,2,0.1,0.1,0.5,0.5,12,0": ("second before 900", False),
        "a,1801,0.1,0.1,0.5,0.5,12,0": ("second after 1800", False),
        "a,902.5,0.1,0.1,0.5,0.5,12,0": ("line that cannot be read", False),
        "a,902,,,,,,": ("line that cannot be read", False),
        "a,902,nan,0.1,0.5,0.5,12,0": ("line that cannot be read", False),
        "a,902,0.1": ("line that cannot be read", False),
        "a,1e300,0.1,0.1,0.5,0.5,12,0": ("line that cannot be read", False),
        f"a,902,0.1,0.1,0.5,0.5,12,{10**30}": ("line that cannot be read", False),
        '"a,b",902,0.1,0.1,0.5,0.5,12,0': ("line that cannot be read", False),
        "\0,902,0.1,0.1,0.5,0.5,12,0": ("line that cannot be read", False),
        f"{'a' * 300},902,0.1,0.1,0.5,0.5,12,0": ("line that cannot be read", False),
    }
    rows, faults = annotations.read_rows(write(tmp_path, *lines), 81)
    assert [(fault.reason, fault.kept) for fault in faults] == [wanted for wanted in lines.values() if wanted]
    assert all(f"line {number}:" in fault.detail for number, fault in enumerate(faults, start=2))
    assert [row.line for row in rows] == [1, 2, 3]
    (keyframe,) = annotations.group_rows(rows, 81)
    np.testing.assert_array_equal(keyframe.boxes, [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.1, 0.5]])


def test_a_header_is_skipped_and_a_file_that_is_no_csv_is_an_error(tmp_path):
    path = write(tmp_path, "video_id,second,x1,y1,x2,y2,action_id,character_id", "a,0,0,0,1,1,1,4")
    rows, faults = annotations.read_rows(path, 3, (0, None))
    assert (rows[0].person, len(rows), faults) == (4, 1, [])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not a UTF-8 csv file"):
        annotations.read_rows(path, 81)


def test_lists_of_keyframes(tmp_path):
    assert annotations.read_excluded(write(tmp_path, "a,0902", "", "b-_,1798")) == {("a", 902), ("b-_", 1798)}
    assert annotations.read_excluded(write(tmp_path, "")) == set()
    for line in ("a", "a,b", ",902", "a,9.5", "a,902,1"):
        with pytest.raises(DataError, match=f"line 2: expected video and second, found '{line}'"):
            annotations.read_excluded(write(tmp_path, "a,0902", line))


def test_proposals_of_a_csv_file(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("video,second,x1,y1,x2,y2,score\nc.mp4,902,0.1,0.2,0.3,0.4,0.9\na.b,0903,0,0,1,1,\n")
    found = annotations.read_proposals(path)
    assert list(found) == [("c", 902), ("a.b", 903)]
    assert annotations.above_threshold(found["c", 902][:, 4], 0.9).tolist() == [0]
    np.testing.assert_array_equal(found["c", 902], [[0.1, 0.2, 0.3, 0.4, 0.9]])
    np.testing.assert_array_equal(found["a.b", 903], [[0, 0, 1, 1, 1]])
    path.write_text("c,902,10,20,30,40\n")
    with pytest.raises(DataError, match=r"p\.csv, line 1: x1 is 10, expected a fraction"):
        annotations.read_proposals(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_proposals_of_any_pickle(tmp_path, protocol):
    path, boxes = tmp_path / "p.pkl", np.array([[0.1, 0.2, 0.3, 0.4, 0.95], [0, 0, 1, 1, 0.2]])
    content = {"a,b,0902": boxes, "c,0902": boxes[:, :4].astype(np.float32), "d,1": np.zeros((0, 5))}
    path.write_bytes(pickle.dumps(content, protocol))
    found = annotations.read_proposals(path)
    np.testing.assert_array_equal(found["a,b", 902], boxes)
    np.testing.assert_array_equal(found["c", 902][:, 4], 1)
    for key in (("d", 1), ("unknown", 1)):
        np.testing.assert_array_equal(annotations.proposals_of(found, key), [[0, 0, 1, 1, 1]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a dict"),
        ({"a,b": np.zeros((1, 5))}, "expected 'VIDEO,SECOND'"),
        ({"a,1": np.zeros((1, 3))}, r"shape \[1, 3\]"),
        ({"a,1": np.full((1, 5), 20.0)}, "not pixels"),
        ({"a,1": np.full((1, 5), np.nan)}, "not pixels"),
        ({"a,1": "text"}, "an array of boxes"),
        ({"a,1": print}, "not on the list of safe names"),
    ],
)
def test_proposals_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        annotations.read_proposals(tmp_path / "p.pkl")


def test_the_threshold_always_leaves_the_best_proposal():
    np.testing.assert_array_equal(annotations.above_threshold(np.array([0.9, 0.89, 0.95]), 0.9), [0, 2])
    np.testing.assert_array_equal(annotations.above_threshold(np.array([0.1, 0.3, 0.2]), 0.9), [1])
    assert len(annotations.above_threshold(np.ones(1500), 0.9)) == 1000


def test_frames_of_both_generations_and_at_the_ends_of_a_film():
    place = 902, 900, 27000
    assert Sampling().numbers(*place).tolist() == [30, 46, 62, 78]
    assert Sampling(frame_shift=0).numbers(*place).tolist() == [29, 45, 61, 77]
    assert Sampling().numbers(0, 0, 60).tolist() == [1, 1, 2, 18]
    assert Sampling(frame_shift=0).numbers(0, 0, 60).tolist() == [1, 1, 1, 17]
    assert Sampling().numbers(2, 0, 60).tolist() == [30, 46, 60, 60]


def test_a_record_has_all_frames_that_any_draw_shows():
    possible = Sampling().possible_numbers(950, 900, 27000)
    assert (len(possible), possible[0] - 1501, possible[-1] - 1501) == (65, -40, 24)
    assert Sampling(jitter=0).possible_numbers(902, 900, 27000) == [29, 30, 45, 46, 61, 62, 77, 78]
    rng = np.random.default_rng(0)
    for frame_shift in (0, 1):
        sampling, drawn = Sampling(frame_shift=frame_shift), set()
        for _ in range(200):
            shifts = sampling.draw_shifts(rng)
            drawn.update(shifts.tolist())
            assert set(sampling.numbers(950, 900, 27000, shifts).tolist()) <= set(possible)
        assert drawn == set(range(-8, 8))

"""Annotations of every form, handmade, and what is left out of them."""

import json

import pytest

from vlm_jax import annotations
from vlm_jax.annotations import AnnotationError, Query


def file(tmp_path, content, name="annotations.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_tacos_counts_in_frames(tmp_path):
    content = {
        "s13-d21.avi": {
            "timestamps": [[294, 588], [1, 2940]],
            "sentences": ["He takes a knife.", "He cooks."],
            "fps": 29.4,
            "num_frames": 2940,
        }
    }
    found = annotations.read(file(tmp_path, content), "tacos")
    assert not found.faults
    first, second = found.queries
    assert (first.qid, first.video, first.query) == ("s13-d21.avi#0", "s13-d21.avi", "He takes a knife.")
    assert (first.spans, first.frames, first.fps) == (((10.0, 20.0),), ((294.0, 588.0),), 29.4)
    assert (second.qid, second.duration) == ("s13-d21.avi#1", 100.0)


ALIGNED = [
    '294\t588\t12.5\t3\tcut\tknife\tHe takes a knife.\t\tThe man "takes" a knife.',
    "600\t700\t20\t4\tnone\t\t\t",
    "soon\t700\t20\t4\tnone\t\tHe cooks.",
    "",
    "1000\t900\t20\t4\tnone\t\tHe leaves.",
]


def test_raw_tacos_is_a_file_per_video(tmp_path):
    (tmp_path / "raw").mkdir()
    for video, lines in (("s14-d2", ALIGNED[:1]), ("s13-d21", ALIGNED)):
        (tmp_path / "raw" / f"{video}.aligned.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "raw" / ".DS_Store").touch()
    found = annotations.read(tmp_path / "raw", "tacos_raw")
    assert [(query.qid, query.video, query.query) for query in found.queries] == [
        ("s13-d21.avi#0", "s13-d21.avi", "He takes a knife."),
        ("s13-d21.avi#1", "s13-d21.avi", 'The man "takes" a knife.'),
        ("s14-d2.avi#0", "s14-d2.avi", "He takes a knife."),
        ("s14-d2.avi#1", "s14-d2.avi", 'The man "takes" a knife.'),
    ]
    query = found.queries[0]
    assert (query.frames, query.spans, query.fps, query.duration) == (((294.0, 588.0),), ((10.0, 20.0),), 29.4, 0.0)
    assert [(fault.item, fault.reason) for fault in found.faults] == [
        ("s13-d21.aligned.tsv, line 2", "not an annotation"),
        ("s13-d21.aligned.tsv, line 3", "not an annotation"),
        ("s13-d21.avi#2", "end before start"),
    ]
    one = annotations.read(tmp_path / "raw" / "s14-d2.aligned.tsv", "tacos_raw")
    assert one.queries == found.queries[2:]
    with pytest.raises(AnnotationError, match=r"no VIDEO[.]aligned[.]tsv there"):
        annotations.read(tmp_path, "tacos_raw")


def test_the_index_of_raw_tacos(tmp_path):
    lines = ["s13-d21_1\tHe takes a knife.\ts13-d21\t294\t588", "s13-d21_2\tHe cooks.\ts13-d21"]
    found = annotations.read(file(tmp_path, "\n".join(lines), "index.tsv"), "tacos_raw")
    frames = ((294.0, 588.0),)
    assert found.queries == [
        Query("s13-d21.avi#0", "s13-d21.avi", "He takes a knife.", 0.0, ((10.0, 20.0),), 29.4, frames)
    ]
    assert [fault.item for fault in found.faults] == ["index.tsv, line 2"]


def test_charades_with_durations(tmp_path):
    lines = "AO8RW 0.0 6.9##a person is putting a book on a shelf.\n\nAO8RW 5 45##they leave.\nBBBBB 1 2 a line\n"
    durations = file(tmp_path, "id,subject,length\nAO8RW,Q,33.67\n", "charades.csv")
    found = annotations.read(file(tmp_path, lines, "test.txt"), "charades", durations)
    sentence = "a person is putting a book on a shelf."
    assert found.queries == [Query("1", "AO8RW", sentence, 33.67, ((0.0, 6.9),))]
    assert [(fault.item, fault.reason) for fault in found.faults] == [
        ("3", "beyond the video"),
        ("line 4", "not an annotation"),
    ]
    assert "33.67 s" in found.faults[0].detail
    assert len(annotations.read(tmp_path / "test.txt", "charades").queries) == 2, "without durations nothing is beyond"


def test_activitynet(tmp_path):
    content = {"v_a": {"duration": 82.73, "timestamps": [[0.83, 19.86], [60, 83.5]], "sentences": ["One.", " Two."]}}
    found = annotations.read(file(tmp_path, content), "activitynet")
    assert [query.spans for query in found.queries] == [((0.83, 19.86),), ((60.0, 83.5),)], "a second late is kept"
    assert found.queries[1] == Query("v_a#1", "v_a", " Two.", 82.73, ((60.0, 83.5),))


def test_didemo_segments_include_their_last(tmp_path):
    entry = {"annotation_id": 7, "description": "the dog sits", "video": "x.mov", "times": [[0, 0], [1, 2], [0, 0]]}
    found = annotations.read(file(tmp_path, [{**entry, "num_segments": 6}]), "didemo")
    assert found.queries == [Query("7", "x.mov", "the dog sits", 30.0, ((0.0, 5.0), (5.0, 15.0), (0.0, 5.0)))]


def test_qvhighlights_has_several_moments_or_none(tmp_path):
    line = {"qid": 2579, "query": "A girl sings", "duration": 150, "vid": "YT_210.0_360.0"}
    text = "\n".join(
        json.dumps(entry) for entry in ({**line, "relevant_windows": [[0, 4], [8, 20]]}, {**line, "qid": 3})
    )
    labelled, unlabelled = annotations.read(file(tmp_path, text), "qvhighlights").queries
    assert labelled == Query("2579", "YT_210.0_360.0", "A girl sings", 150.0, ((0.0, 4.0), (8.0, 20.0)))
    assert unlabelled.spans == ()


def test_our_own_form_comes_back(tmp_path):
    queries = [
        Query("a", "v", "Grüße", 9.5, ((1.0, 2.0), (3.0, 4.5)), 20.0, ((20.0, 40.0), (60.0, 90.0))),
        Query("b", "v", "no moment"),
    ]
    annotations.write(tmp_path / "ours.jsonl", queries)
    assert annotations.read(tmp_path / "ours.jsonl").queries == queries


def test_bad_lines_are_left_out_with_their_reasons(tmp_path):
    good = {"qid": "g", "video": "v", "query": "good", "duration": 10, "spans": [[1, 2]]}
    bad = {
        "beyond the video": {"qid": "1", "spans": [[1, 20]]},
        "duplicate id": {"query": "twice"},
        "empty query": {"qid": "3", "query": "  "},
        "end before start": {"qid": "4", "spans": [[3, 2]]},
        "zero length": {"qid": "5", "spans": [[3, 3]]},
        "not a time": {"qid": "6", "spans": [[3, float("nan")]]},
        "no name": {"qid": "7", "video": ""},
        "bad duration": {"qid": "8", "duration": -1},
        "not an annotation": {"qid": "9", "spans": [[1, 2, 3]]},
    }
    lines = [json.dumps(good), *(json.dumps(good | change) for change in bad.values())]
    lines += ["{half", '"text"', '{"qid": 1, "video": "v"}', json.dumps(good | {"qid": "10", "query": 5})]
    lines += [
        json.dumps(good | {"qid": "11", "spans": [[-1, 2]]}),
        json.dumps(good | {"qid": "12", "spans": [[10, 11]]}),
    ]
    found = annotations.read(file(tmp_path, "\n".join(lines)))
    assert [query.qid for query in found.queries] == ["g"]
    reasons = [fault.reason for fault in found.faults]
    assert reasons == [*bad, *["not an annotation"] * 4, *["beyond the video"] * 2]
    assert "no key 'query'" in found.faults[11].detail


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("tacos", "[]", "expected a JSON object by video, found a list"),
        ("activitynet", '{"v": {"sentences": ["a"], "timestamps": []}}', "v: 1 sentences, but 0 timestamps"),
        ("activitynet", '{"v": [1]}', "v: expected lists of timestamps and sentences"),
        ("didemo", "{}", "expected a JSON list, found a dict"),
        ("didemo", "[", "not JSON"),
        ("jsonl", "", "holds no annotations of the form jsonl"),
        ("jsonl", "no\njson", "none of 2 annotations of the form jsonl can be used; the first, line 1: not an"),
        ("charades", "x", "none of 1 annotations"),
        ("video", "", "form 'video' is not one of tacos, charades"),
    ],
)
def test_files_of_another_form_are_one_line(tmp_path, form, content, message):
    with pytest.raises(AnnotationError) as said:
        annotations.read(file(tmp_path, content), form)
    assert message in str(said.value)
    assert "\n" not in str(said.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"absent\.json: No such file"):
        annotations.read(tmp_path / "absent.json")
    (tmp_path / "latin").write_bytes("Grüße".encode("latin1"))
    with pytest.raises(AnnotationError, match="not a UTF-8 file"):
        annotations.read(tmp_path / "latin")
    lines = file(tmp_path, "A 1 2##b", "test.txt")
    with pytest.raises(AnnotationError, match="no column 'id'; it has video, length"):
        annotations.read(lines, "charades", file(tmp_path, "video,length\n", "table.csv"))
    with pytest.raises(AnnotationError, match="a length is no number"):
        annotations.read(lines, "charades", file(tmp_path, "id,length\nA,long\n", "table.csv"))
    with pytest.raises(AnnotationError, match="for charades only, not for jsonl"):
        annotations.read(lines, "jsonl", tmp_path / "table.csv")

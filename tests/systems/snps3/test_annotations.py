"""Lines of annotations: what can be used, and how they are grouped."""

import json

import pytest
from caption_files import write_lines

from vlm_jax.errors import DataError
from vlm_jax.systems.snps3 import annotations

ROW = {"caption": "a dog", "clip_name": "a.mp4", "sen_id": 0}
QUESTION = {"caption": "who?", "clip_name": "a.mp4", "label": "dog"}
CHOICE = {"qid": "m", "clip_name": "a.mp4", "title": "t", "answer": "1", "options": ["a", "b"]}


def read(folder, rows, use="captions"):
    return annotations.read_lines(write_lines(folder / "rows.jsonl", rows), use)


@pytest.mark.parametrize(
    ("use", "row", "reason"),
    [
        ("captions", {"clip_name": ""}, "no clip_name"),
        ("captions", {"clip_name": 7}, "no clip_name"),
        ("captions", {"clip_name": "a\nb"}, "no clip_name"),
        ("captions", {"clip_name": "a\ud800"}, "no clip_name"),
        ("captions", {"clip_name": "a" * 2000}, "no clip_name"),
        ("captions", {"caption": 7}, "no caption"),
        ("captions", {"type": "sound"}, "type is neither image nor video"),
        ("captions", {"start": 3, "end": 3}, "start is not before end"),
        ("captions", {"start": 3}, "start is not before end"),
        ("captions", {"start": "3", "end": 4}, "start is no time in seconds"),
        ("captions", {"start": -1, "end": 4}, "start is no time in seconds"),
        ("captions", {"start": 0, "end": float("inf")}, "end is no time in seconds"),
        ("questions", {"caption": None}, "no caption"),
        ("questions", {"label": None}, "label is neither a number nor a text"),
        ("questions", {"label": []}, "label is neither a number nor a text"),
        ("questions", {"label": -1}, "label is neither a number nor a text"),
        ("questions", {"label": 1.5}, "label is neither a number nor a text"),
        ("choices", {"options": []}, "options are no list of texts"),
        ("choices", {"options": "ab"}, "options are no list of texts"),
        ("choices", {"answer": "2"}, "answer is none of the options"),
        ("choices", {"answer": [1]}, "answer is none of the options"),
    ],
)
def test_a_line_that_cannot_be_used_is_listed_with_its_reason(tmp_path, use, row, reason):
    good = {"captions": ROW, "questions": QUESTION, "choices": CHOICE}[use]
    lines, faults = read(tmp_path, [good, good | row], use)
    assert [line.number for line in lines] == [1]
    assert [(fault.item, fault.reason) for fault in faults] == [("line 2", reason)]


@pytest.mark.parametrize("text", ["no json", "[1]", "[" * 100000, '{"clip_name": "a"'])
def test_text_that_is_no_json_object_is_a_fault(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + text + "\n")
    lines, faults = annotations.read_lines(path, "captions")
    assert (len(lines), faults[0].item) == (1, "line 3")
    assert len(faults[0].detail) <= 80


def test_a_file_without_a_line_that_can_be_used_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no line that can be used for captions, the file is empty"):
        read(tmp_path, [])
    with pytest.raises(DataError, match="line 1: no clip_name"):
        read(tmp_path, [{}])
    with pytest.raises(DataError, match="no such file"):
        annotations.read_lines(tmp_path / "none.jsonl", "captions")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected one JSON object per line"):
        annotations.read_lines(tmp_path / "binary", "captions")


def test_missing_captions_are_empty_and_media_are_videos(tmp_path):
    (line,), _ = read(tmp_path, [{"clip_name": "a", "caption": None}])
    assert (line.text, line.media, line.part) == ("", "video", ("a", None, None))


def test_labels_are_numbers_texts_lists_or_multi_hot(tmp_path):
    labels = [3, "3", " Red ", ["red", 2], [0, 1, 1, 0], [1]]
    lines, faults = read(tmp_path, [QUESTION | {"label": label} for label in labels], "questions")
    assert not faults
    assert [line.answers for line in lines] == [(3,), ("3",), ("Red",), ("red", 2), (1, 2), (1,)]
    assert [line.key for line in lines] == [0, 1, 2, 3, 4, 5]


def test_choices_need_no_answer(tmp_path):
    (first, second), _ = read(tmp_path, [CHOICE, {key: CHOICE[key] for key in CHOICE if key != "answer"}], "choices")
    assert (first.answers, second.answers, first.options) == ((1,), (), ("a", "b"))


def test_parts_of_a_video_follow_one_another(tmp_path):
    names = ["a", "b", "a", "b"]
    rows = [
        {"clip_name": name, "caption": str(n), "start": n, "end": n + 1, "sen_id": n} for n, name in enumerate(names)
    ]
    items = annotations.group_parts(read(tmp_path, rows)[0])
    assert [(item.video, item.lines[0].text) for item in items] == [(0, "0"), (0, "2"), (1, "1"), (1, "3")]


def test_speech_is_joined_to_parts_of_ten_seconds(tmp_path):
    path = tmp_path / "a"
    columns = {"text": ["one", "two", "three", "four"], "start": [0, 4, 11, 30], "end": [3, 11, 13, 30]}
    path.write_text(json.dumps(columns))
    transcript = annotations.read_transcript(path)
    assert len(transcript) == 3  # the last one has no length
    (line,), _ = read(tmp_path, [{"clip_name": "a"}])
    parts = [(part.text, part.start, part.end) for part in annotations.spoken_parts(line, transcript)]
    assert parts == [("one two", 0.0, 11.0), ("three", 11.0, 13.0)]
    path.write_text('{"text": ["one"], "start": []}')
    with pytest.raises(DataError, match="text, start and end"):
        annotations.read_transcript(path)

"""Checks of raw and prepared data name the usual faults."""

import shutil

import pytest
from caption_files import CAPTIONS, WORDS, prepared, write_image, write_lines, write_media

from data_prep.snps3 import prepare
from vlm_jax.errors import DataError
from vlm_jax.systems.snps3.table import read_table, table_path, write_table


@pytest.fixture
def said(capsys):
    """Return a function that runs the check and returns what it prints and whether it found problems."""

    def run(*words):
        capsys.readouterr()
        try:
            prepare.main(["--check", *map(str, words)])
        except SystemExit as ended:
            return capsys.readouterr().out, ended.code == 1
        return capsys.readouterr().out, False

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    rows = [row for row in CAPTIONS if row["caption"]]
    prepared(folder, rows=rows)
    prepared(folder, "--format", "video", output="whole", rows=rows[:4])
    prepared(folder, use="choices")
    return folder


def test_good_data_have_no_problems(good, said):
    for name, counted in (("captions", "6 records"), ("whole", "3 records"), ("choices", "2 records")):
        out, bad = said(good / name)
        assert not bad, out
        assert f"{counted}, 1 table" in out
    lines = write_lines(good / "raw.jsonl", [row for row in CAPTIONS if row["caption"]])
    out, bad = said(good / "media", "--annotations", lines)
    assert not bad, out
    assert "7 lines, 7 texts, 3 videos, 2 images checked, no problems" in out


def test_raw_data_name_lines_and_media(tmp_path, said):
    media = write_media(tmp_path)
    write_image(media / "broken.jpg")
    (media / "broken.jpg").write_bytes(b"noise")
    (media / "broken.mp4").write_bytes(b"noise")
    rows = [CAPTIONS[0], {"clip_name": 3}, {"clip_name": "a", "caption": " "}, {"clip_name": "lost", "caption": "x"}]
    rows += [{"clip_name": "broken.jpg", "caption": "x", "type": "image"}, {"clip_name": "broken", "caption": "x"}]
    out, bad = said(media, "--annotations", write_lines(tmp_path / "lines.jsonl", rows))
    assert bad
    for part in ("1 line cannot be used", "line 2: no clip_name (3)", "1 text is empty", "1 image or video is missing"):
        assert part in out
    assert "2 images or videos cannot be decoded" in out
    assert "broken: video is unreadable" in out
    out, bad = said(media, "--annotations", tmp_path / "none.jsonl")
    assert bad
    assert "no such file" in out


def test_raw_data_without_annotations_are_an_error(tmp_path):
    with pytest.raises(DataError, match="raw data need --annotations"):
        prepare.main(["--check", str(tmp_path)])
    with pytest.raises(DataError, match="no such folder"):
        prepare.main(["--check", str(tmp_path / "none")])


def test_a_vocabulary_of_another_language_is_noticed(good, tmp_path, said):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*WORDS[:5], "chien", "chat"]))
    out, bad = said(good / "captions", "--vocabulary", path)
    assert bad
    assert "1 list of texts has too many unknown tokens" in out
    path.write_text("\n".join(WORDS))
    assert not said(good / "captions", "--vocabulary", path)[1]


def test_a_table_of_other_records_is_noticed(good, tmp_path, said):
    folder = shutil.copytree(good / "captions", tmp_path / "captions")
    table = read_table(folder, "train")
    table.sizes[3] += 1
    write_table(table_path(folder, "train"), table)
    out, bad = said(folder)
    assert bad
    assert "train: record 3 is ('frames', (30, 40)), the table has ('frames', (31, 41))" in out
    table_path(folder, "train").write_bytes(b"noise")
    assert "1 table does not fit its records" in said(folder)[0]


def test_a_damaged_shard_is_noticed(good, tmp_path, said):
    folder = shutil.copytree(good / "captions", tmp_path / "captions")
    (path, *_) = sorted(folder.glob("*.tfrecord-00000-*"))
    path.write_bytes(path.read_bytes()[:-20])
    out, bad = said(folder)
    assert bad
    assert "1 shard is missing, damaged or does not fit its index" in out


def test_one_video_and_a_wrong_vocabulary_of_answers_are_noticed(tmp_path, said):
    one = prepared(tmp_path, output="single", rows=CAPTIONS[:1])
    assert "1 split has one video only" in said(one)[0]
    rows = [{"caption": "?", "clip_name": "a", "label": "rouge"}, {"caption": "?", "clip_name": "b", "label": "bleu"}]
    folder = prepared(tmp_path, use="questions", rows=rows)
    out, bad = said(folder)
    assert bad
    assert "1 split has questions without an answer of the vocabulary" in out
    assert "train: 2 of 2" in out

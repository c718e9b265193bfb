"""Preparation of items: media of every kind, parts, hostile files, options."""

import csv
import functools
import json
import pickle

import lmdb
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from caption_files import CAPTIONS, QUESTIONS, options, prepared, write_image, write_lines, write_media, write_numbered

from data_prep.snps3 import prepare
from data_prep.snps3.media import Storage, part_records
from vlm_jax.data.record_examples import Split, read_features
from vlm_jax.data.records import Skip
from vlm_jax.errors import DataError
from vlm_jax.systems.snps3.data import FEATURES
from vlm_jax.systems.snps3.table import read_table


def records(folder, split="train", form="frames"):
    """Return the records of a data set by the name of the video or image; frames are encoded."""
    features = dict(FEATURES[form])
    if form == "frames":
        features["frames"] = tfds.features.Sequence(tfds.features.Text())
    found = {}
    for record in read_features(Split(folder, split), features):
        found.setdefault(record["clip_name"].decode(), []).append(record)
    return found


def greys(record):
    """Return the grey values of a record's frames."""
    return [round(float(tf.io.decode_jpeg(frame, 3).numpy().mean())) for frame in record["frames"]]


def skipped(folder):
    with open(folder / "skipped.csv", newline="") as file:
        return {row["item"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def test_media_of_every_kind(tmp_path, capsys):
    folder = prepared(tmp_path)
    found = records(folder)
    assert [greys(record) for record in found["a.mp4"]] == [[8 * n for n in range(8)], [8 * n for n in range(4, 12)]]
    assert greys(found["b"][0]) == [8 * n for n in range(8)]
    assert greys(found["one"][0]) == [0]
    assert greys(found["frames"][0]) == [10, 20, 90, 100]  # in the order of their numbers
    assert found["small.jpg"][0]["frames"][0] == (tmp_path / "media" / "small.jpg").read_bytes()
    assert found["tall.png"][0]["frames"][0] == (tmp_path / "media" / "tall.png").read_bytes()
    assert (int(found["tall.png"][0]["height"]), int(found["tall.png"][0]["width"])) == (40, 24)
    table = read_table(folder, "train")
    assert list(table.videos) == ["a.mp4", "a.mp4", "b", "one", "frames", "small.jpg", "tall.png"]
    assert table.video_numbers.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert table.captions(0) == ["the dog", "a red dog runs"]
    out = capsys.readouterr().out
    assert "8 captions of 7 parts of 6 videos or images" in out
    assert "empty texts: 1" in out
    assert not skipped(folder)


def test_frames_are_sampled_and_scaled(tmp_path):
    found = records(prepared(tmp_path, "--num_frames", 4, "--max_side", 24))
    # Two frames of each second of the part; fewer frames than asked for are all kept.
    assert [greys(record) for record in found["a.mp4"]] == [[0, 16, 32, 48], [32, 48, 64, 80]]
    assert greys(found["one"][0]) == [0]
    sizes = {name: (int(record["height"]), int(record["width"])) for name, (record, *_) in found.items()}
    assert sizes == {"a.mp4": (18, 24), "b": (18, 24), "one": (18, 24), "frames": (18, 24)} | {
        "small.jpg": (12, 20),
        "tall.png": (24, 14),
    }


def test_whole_videos_are_kept_as_they_are(tmp_path, capsys):
    folder = prepared(tmp_path, "--format", "video", output="whole")
    found = records(folder, form="video")
    content = (tmp_path / "media" / "a.mp4").read_bytes()
    assert [record["video"] for record in found["a.mp4"]] == [content] * 2
    assert [(int(record["first"]), int(record["count"])) for record in found["a.mp4"]] == [(0, 8), (4, 8)]
    assert {name: reason for name, (reason, _) in skipped(folder).items()} == {
        "frames": "folder of frames in a data set of whole videos",
        "small.jpg": "image in a data set of whole videos",
        "tall.png": "image in a data set of whole videos",
    }
    with pytest.raises(DataError, match="--format video: files are kept as they are"):
        prepare.main(options(tmp_path, "--format", "video", "--max_side", 10))


def test_broken_and_missing_media_are_skipped_with_a_reason(tmp_path):
    media = write_media(tmp_path)
    (media / "noise.mp4").write_bytes(b"noise" * 100)
    (media / "empty.mp4").write_bytes(b"")
    (media / "cut.mp4").write_bytes((media / "a.mp4").read_bytes()[:-300])
    (media / "noise.jpg").write_bytes(b"noise" * 100)
    (media / "half.jpg").write_bytes((media / "small.jpg").read_bytes()[:300])
    (media / "hollow").mkdir()
    (media / "mixed").mkdir()
    write_image(media / "mixed" / "1.jpg", (8, 8))
    write_image(media / "mixed" / "2.jpg", (8, 9))
    (tmp_path / "outside.mp4").write_bytes((media / "a.mp4").read_bytes())
    names = ["noise", "empty", "cut", "noise.jpg", "half.jpg", "hollow", "mixed", "lost", "../outside.mp4", ".", "a"]
    rows = [{"caption": "x", "clip_name": name, "type": "image" if name.endswith("jpg") else "video"} for name in names]
    rows += [
        {"caption": "x", "clip_name": "b", "start": 90, "end": 91},
        {"caption": "x", "clip_name": "frames", "start": 0, "end": 1},
    ]
    folder = prepared(tmp_path, rows=rows)
    reasons = {name: reason for name, (reason, _) in skipped(folder).items()}
    assert reasons == {
        "noise": "video is unreadable",
        "empty": "video is empty",
        "cut": reasons["cut"],
        "noise.jpg": "image cannot be decoded",
        "half.jpg": "image cannot be decoded",
        "hollow": "folder without frames",
        "mixed": "frames differ in size",
        "lost": "video is missing",
        "../outside.mp4": "name of no file in the folder",
        ".": "name of no file in the folder",
        "b, 90 to 91 s": "part begins after the end",
        "frames, 0 to 1 s": "unknown frame rate",
    }
    assert reasons["cut"] in ("video is truncated", "video is unreadable", "video is no frames")
    assert list(read_table(folder, "train").videos) == ["a"]
    assert all("\n" not in detail for _, detail in skipped(folder).values())


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no record"):
        prepared(tmp_path, rows=[{"caption": "x", "clip_name": "lost"}])


def test_a_video_that_appears_is_added_by_the_same_command(tmp_path):
    rows = [{"caption": "x", "clip_name": name} for name in ("a", "late")]
    assert list(read_table(prepared(tmp_path, rows=rows), "train").videos) == ["a"]
    write_numbered(tmp_path / "media" / "late.mp4")
    assert list(read_table(prepared(tmp_path, rows=rows), "train").videos) == ["a", "late"]


def test_parts_of_folders_of_frames_need_a_rate(tmp_path):
    rows = [{"caption": "x", "clip_name": "frames", "start": 0.5, "end": 9}]
    (record,) = records(prepared(tmp_path, "--frame_rate", 2, rows=rows))["frames"]
    assert greys(record) == [20, 90, 100]


def test_an_lmdb_is_read_by_names_without_ending(tmp_path):
    media = write_media(tmp_path)
    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 24) as store, store.begin(write=True) as transaction:
        for name in ("a.mp4", "small.jpg"):
            transaction.put(name.split(".")[0].encode(), (media / name).read_bytes())
    names = [("a", "video"), ("a.mp4", "video"), ("small.jpg", "image"), ("lost", "video"), ("x" * 900, "video")]
    parts = [[n, name, kind, None, None] for n, (name, kind) in enumerate(names)]
    made = list(part_records(parts, media=tmp_path / "lmdb", storage=Storage()))
    assert [record.example["count"] for record in made[:3]] == [12, 12, 1]
    assert [skip.reason for skip in made[3:] if isinstance(skip, Skip)] == ["video is missing"] * 2
    rows = [{"caption": "x", "clip_name": name, "type": kind} for name, kind in names[:3]]
    words = options(tmp_path, rows=rows)
    words[words.index(str(media))] = str(tmp_path / "lmdb")
    prepare.main(words)
    assert len(read_table(tmp_path / "captions", "train")) == 3


def test_the_same_command_gives_the_same_bytes(tmp_path):
    folders = [prepared(tmp_path, output=name) for name in ("one", "two")]
    names = sorted(path.name for path in folders[0].iterdir() if "tfrecord" in path.name or "table" in path.name)
    assert len(names) == 3
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_work_can_be_given_to_other_processes(tmp_path):
    make = functools.partial(part_records, media=write_media(tmp_path), storage=Storage(num_frames=2))
    (record,) = pickle.loads(pickle.dumps(make))([[0, "a.mp4", "video", 0.0, 1.0]])
    assert record.example["count"] == 2


def test_shards_of_a_cluster_are_finalized_later(tmp_path):
    for index in (0, 1):
        prepare.main(options(tmp_path, "--shard_index", index))
    prepare.main(options(tmp_path, "--finalize"))
    assert len(read_table(tmp_path / "captions", "train")) == 7


def test_transcripts_stand_in_for_captions(tmp_path, capsys):
    (tmp_path / "speech").mkdir()
    columns = {"text": ["hello there", "dog"], "start": [0.0, 1.0], "end": [1.0, 2.0]}
    (tmp_path / "speech" / "a").write_text(json.dumps(columns))
    (tmp_path / "speech" / "b.json").write_text("noise")
    rows = [{"caption": None, "clip_name": name} for name in ("a.mp4", "b.mp4", "one")]
    rows.append({"caption": "kept", "clip_name": "frames"})
    folder = prepared(tmp_path, "--transcripts", tmp_path / "speech", rows=rows)
    table = read_table(folder, "train")
    assert [table.captions(item) for item in range(2)] == [["hello there dog"], ["kept"]]
    assert table.part(0) == ("a.mp4", 0.0, 2.0)
    out = capsys.readouterr().out
    assert "1 x line skipped: transcript cannot be read" in out
    assert "1 x line skipped: no transcript" in out
    faults = (folder / "items-train.faults.csv").read_text()
    assert "line 2" in faults
    assert "line 3" in faults
    with pytest.raises(DataError, match="no caption, and no speech"):
        prepared(tmp_path, "--transcripts", tmp_path / "speech", rows=rows[1:3], output="none")


def test_answers_are_words_of_a_vocabulary_or_numbers(tmp_path, capsys):
    table = read_table(prepared(tmp_path, use="questions"), "train")
    assert [table.labels(item) for item in range(4)] == [[0], [3, 0], [1], [-1]]
    assert list(table.qids) == ["q0", "q2", "q1", "q3"]
    assert "questions without an answer of the vocabulary: 1" in capsys.readouterr().out
    words = options(tmp_path, use="questions", output="no")
    del words[-2:]
    with pytest.raises(DataError, match=r"line 1 has the answer 'red'; --answers must name a vocabulary"):
        prepare.main(words)
    numbers = [QUESTIONS[0] | {"label": label} for label in (3, "17", 9)]
    words = options(tmp_path, use="questions", output="numbers", rows=numbers)
    del words[-2:]
    with pytest.raises(DataError, match="--num_answers: labels are numbers up to 17"):
        prepare.main(words)
    prepare.main([*words, "--num_answers", "10"])
    table = read_table(tmp_path / "numbers", "train")
    assert [table.labels(item) for item in range(3)] == [[3], [-1], [9]]


def test_options_out_of_range_are_one_line(tmp_path):
    for word, value in (("num_frames", -1), ("quality", 0), ("frame_rate", -2), ("max_side", -1)):
        with pytest.raises(DataError, match=f"--{word}: expected at least"):
            prepared(tmp_path, f"--{word}", value)
    words = options(tmp_path)
    words[words.index(str(tmp_path / "media"))] = str(tmp_path / "lost")
    with pytest.raises(DataError, match=r"--media: .*lost: no such folder or LMDB"):
        prepare.main(words)
    prepared(tmp_path)
    with pytest.raises(DataError, match="begun with"):
        prepared(tmp_path, rows=CAPTIONS[:3])
    path = write_lines(tmp_path / "bad.jsonl", ["x"])
    words = options(tmp_path, output="bad")
    words[words.index(str(tmp_path / "captions-train.jsonl"))] = str(path)
    with pytest.raises(DataError, match="no line that can be used for captions; line 1: no JSON object"):
        prepare.main(words)


def test_splits_of_a_folder_are_prepared_alike(tmp_path):
    folder = prepared(tmp_path)
    prepared(tmp_path, split="test", rows=CAPTIONS[:3])
    assert len(read_table(folder, "test")) == 2
    with pytest.raises(DataError, match="its frames_per_record is 0, expected 4"):
        prepared(tmp_path, "--num_frames", 4, split="val")


def test_values_are_finite(tmp_path):
    table = read_table(prepared(tmp_path), "train")
    assert np.isnan(table.spans[2]).all()
    assert np.isfinite(table.spans[:2]).all()

"""CTRL's preparation: from the released files' form to records and back, and what is left out."""

import csv
import pickle

import ctrl_files
import numpy as np
import pytest

from data_prep.ctrl import prepare as preparation
from data_prep.ctrl import sentences
from data_prep.ctrl import windows as ctrl_windows
from vlm_jax.data.feature_store import read_records
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.ctrl import data
from vlm_jax.systems.ctrl.samples import SampleSpec
from vlm_jax.systems.ctrl.windows import parse

SPEC = SampleSpec(visual_dim=3 * ctrl_files.WIDTH, sentence_dim=ctrl_files.VECTOR)


def test_records_hold_what_the_files_hold(tmp_path, capsys):
    ctrl_files.prepare(ctrl_files.write(tmp_path, videos=3))
    loaded = data.load(str(tmp_path / "windows"), str(tmp_path / "queries"), "train", SPEC)
    assert [video.name for video in loaded.videos] == ["s0-d_0.avi", "s1-d_1.avi"]
    for video in loaded.videos:
        files = sorted(path.name for path in (tmp_path / "features").glob(f"{video.name}_*"))
        assert [(video.name, *span) for span in video.spans.tolist()] == [parse(name) for name in files]
        features = np.stack([np.load(tmp_path / "features" / name) for name in files])
        np.testing.assert_array_equal(video.features, features)
    content = pickle.loads((tmp_path / "train.pkl").read_bytes())
    expected = [(name.decode(), vector) for name, vectors in content for vector in vectors]
    assert len(loaded.queries) == len(expected) == 24
    for query, (name, vector) in zip(loaded.queries, expected, strict=True):
        assert (query.video, *query.span.tolist()) == parse(name)
        assert query.fps == 20
        np.testing.assert_array_equal(query.vector, vector[: ctrl_files.VECTOR].astype(np.float32))
    assert "0 skipped" in capsys.readouterr().out


def test_frame_counts_travel_with_the_windows(tmp_path):
    ctrl_files.prepare(ctrl_files.write(tmp_path, videos=2))
    split = Split(str(tmp_path / "windows"), data.WINDOWS)
    counts = pickle.loads((tmp_path / "frames.pkl").read_bytes())
    for record in read_records(split, data.WINDOW_FEATURES):
        assert record["num_frames"] == counts[record["video"].split(b".")[0]]


def skipped(folder):
    with open(folder / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def test_odd_files_are_left_out_and_listed(tmp_path, capsys):
    features = tmp_path / "features"
    features.mkdir()
    for start in (1, 13):
        np.save(features / f"a.avi_{start}_{start + 64}.npy", np.ones(4))
    np.save(features / "a.avi_25_89.npy", np.ones(5))
    np.save(features / "a.avi_37_101.npy", np.full(4, np.nan))
    (features / "a.avi_49_113.npy").write_bytes(b"no array")
    np.save(features / "b.avi_1_65.npy", np.array([{"an": "object"}], object))
    (features / ".DS_Store").write_bytes(b"")
    output = tmp_path / "windows"
    words = ["windows", "--features", features, "--output", output, "--dim", 4, "--num_shards", 1]
    preparation.main([str(word) for word in words])
    assert skipped(output) == {
        "a.avi_25_89.npy": "wrong width",
        "a.avi_37_101.npy": "not finite",
        "a.avi_49_113.npy": "unreadable",
        "b.avi_1_65.npy": "unreadable",
        ".DS_Store": "not named like a window",
    }
    (record,) = read_records(Split(str(output), data.WINDOWS), data.WINDOW_FEATURES)
    assert record["spans"].tolist() == [[13, 77], [1, 65]], "in the order of the names"
    assert "5 skipped" in capsys.readouterr().out
    np.save(features / "a.avi_49_113.npy", np.ones(4))
    preparation.main([str(word) for word in words])
    assert "a.avi_49_113.npy" not in skipped(output), "tried again, as its file changed"


def test_moments_without_a_name_or_a_sentence_are_listed(tmp_path):
    path = tmp_path / "sentences.pkl"
    path.write_bytes(pickle.dumps([["a.avi_1_9", [[1.0, 2.0]]], ["strange", [[3.0, 4.0]]], ["a.avi_2_9", []]]))
    words = ["queries", "--sentences", path, "--split", "test", "--output", tmp_path / "queries", "--dim", 2]
    preparation.main([str(word) for word in words])
    assert skipped(tmp_path / "queries") == {"strange#0": "not named like a moment", "a.avi_2_9": "no sentences"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "damaged, truncated or not a pickle"),
        (b"\x80\x02cposix\nsystem\n(U\x04truetR.", "not on the list of safe names"),
        (pickle.dumps({"a": 1}), "expected a list"),
        (pickle.dumps([["a_1_2", [[1.0]]]]), "entry 0 has a vector of 1 numbers, expected 2"),
        (None, "No such file"),
    ],
)
def test_files_of_sentences_that_cannot_be_used_are_named(tmp_path, content, message):
    path = tmp_path / "sentences.pkl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as said:
        sentences.read_sentences(path, 2)
    assert str(said.value).startswith(f"{path}: ")
    assert message in str(said.value)
    assert "\n" not in str(said.value)


def test_a_folder_or_a_table_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(DataError, match="no file named like VIDEO_START_END"):
        ctrl_windows.window_items(tmp_path, {})
    with pytest.raises(DataError, match="No such file"):
        ctrl_windows.window_items(tmp_path / "absent", {})
    (tmp_path / "frames.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match="expected a pickled dict of frame counts by video, found a list"):
        ctrl_windows.frame_counts(tmp_path / "frames.pkl")

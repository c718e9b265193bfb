"""CTRL's --check: what is wrong is told in words; what is right is left in peace."""

import json
import shutil

import ctrl_files
import numpy as np
import pytest

from data_prep.ctrl import prepare as preparation
from vlm_jax import features as feature_files
from vlm_jax import text_features as text_vectors
from vlm_jax.annotations import Query, write
from vlm_jax.errors import DataError
from vlm_jax.features import Settings
from vlm_jax.text_features import TextSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ctrl_files.prepare(ctrl_files.write(tmp_path_factory.mktemp("check"), videos=2))


def check(*words):
    preparation.main([str(word) for word in words])


def wrong(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        check(*words)
    assert ended.value.code == 1
    return capsys.readouterr().out


def raw(folder):
    return ["--check", folder / "features", f"--dim={ctrl_files.WIDTH}", "--frames", folder / "frames.pkl"]


def test_good_data_has_no_problems(folder, capsys):
    pickled = ["--sentences", folder / "train.pkl", f"--sentence_dim={ctrl_files.VECTOR}"]
    check(*raw(folder), *pickled)
    assert "1 annotated video checked, no problems" in capsys.readouterr().out
    for name in ("windows", "queries"):
        check("--check", folder / name)
        assert "records checked, no problems" in capsys.readouterr().out
    check("--check", folder / "windows", *pickled)


def test_bad_windows_are_told_by_reason(folder, tmp_path, capsys):
    features = tmp_path / "features"
    shutil.copytree(folder / "features", features)
    np.save(features / "s0-d_0.avi_001_65.npy", np.ones(ctrl_files.WIDTH))
    np.save(features / "s0-d_0.avi_9000_9064.npy", np.ones(ctrl_files.WIDTH))
    np.save(features / "s0-d_0.avi_2_65.npy", np.ones(3))
    np.save(features / "s0-d_0.avi_3_65.npy", np.full(ctrl_files.WIDTH, np.nan))
    (features / "s0-d_0.avi_4_65.npy").write_bytes(b"")
    (features / "notes.txt").write_text("")
    said = wrong(capsys, *raw(folder)[:1], features, *raw(folder)[2:])
    for words in (
        "6 problems",
        "1 window is there twice",
        "1 window ends after its video",
        "frames 9000 to 9064, the video has",
        "1 feature has another width",
        "3 numbers, expected 8",
        "1 feature is not finite",
        "1 file cannot be used",
        "1 file is not named VIDEO_START_END.npy",
    ):
        assert words in said


def test_bad_sentences_are_told_by_reason(folder, tmp_path, capsys):
    good = Query("a", "s0-d_0.avi", "it shows", 100.0, ((1.0, 2.0),))
    bad = [
        {"qid": "a"},
        {"qid": "b", "spans": ((5.0, 5.0),)},
        {"qid": "c", "spans": ((90.0, 120.0),)},
        {"qid": "d", "video": "absent.avi"},
        {"qid": "e"},
        {"qid": "f"},
    ]
    write(tmp_path / "ours.jsonl", [good, *(Query(**{**good.__dict__, **change}) for change in bad)])
    vectors = {"a": np.ones(3), "d": np.ones(3), "f": np.full(3, np.nan)}
    text_vectors.save(tmp_path / "v.npz", vectors, TextSettings("sentence", 3, "f", "a", True, 16))
    said = wrong(
        capsys, *raw(folder), "--sentences", tmp_path / "ours.jsonl", "--format=jsonl", "--vectors", tmp_path / "v.npz"
    )
    for words in (
        "6 problems",
        "1 sentence has an id of another",
        "1 moment has no length",
        "1 moment lies beyond its video",
        "90 to 120 s of s0-d_0.avi, which lasts 100 s",
        "1 video of a sentence has no features",
        "absent.avi: 1 sentences",
        "1 sentence has no vector",
        "1 sentence has a vector of another width or with NaN",
    ):
        assert words in said


def test_our_own_features_and_damaged_records(folder, tmp_path, capsys):
    settings = Settings("mixed_5c", 16, 8, 5.0, 224, "center", "float32", 4, "f" * 64)
    feature_files.write_settings(tmp_path / "ours", settings)
    feature_files.save(tmp_path / "ours", "good", np.ones((3, 4), np.float32))
    check("--check", tmp_path / "ours")
    feature_files.save(tmp_path / "ours", "nan", np.full((3, 4), np.nan, np.float32))
    feature_files.save(tmp_path / "ours", "wide", np.ones((3, 5), np.float32))
    said = wrong(capsys, "--check", tmp_path / "ours")
    assert "1 feature is not finite" in said
    assert "expected float32 [N, 4]" in said

    shutil.copytree(folder / "queries", tmp_path / "queries")
    path = tmp_path / "queries" / "protocol.json"
    content = json.loads(path.read_text())
    content["protocol"]["sentence_dim"] = 99
    path.write_text(json.dumps(content))
    assert "the protocol says 99" in wrong(capsys, "--check", tmp_path / "queries")
    with pytest.raises(DataError, match="no such folder"):
        check("--check", tmp_path / "absent")

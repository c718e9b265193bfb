"""Vectors of sentences on disk, and what is said where they cannot be used."""

import dataclasses
import json

import numpy as np
import pytest

from vlm_jax import text_features as text_vectors
from vlm_jax.features import FeatureError
from vlm_jax.text_features import TextSettings, TextVectors

SETTINGS = TextSettings("sentence", 3, "f" * 64, "a" * 64, True, 16, "runs/milnce")


def test_there_and_back(tmp_path):
    vectors = {"file": np.arange(3.0), "v#0/1": np.ones(3, np.float32), "ü": np.ones((2, 3))}
    text_vectors.save(tmp_path / "made" / "vectors.npz", vectors, SETTINGS)
    found = TextVectors(tmp_path / "made" / "vectors.npz")
    assert (list(found), len(found), found.settings) == (list(vectors), 3, SETTINGS)
    for name, vector in vectors.items():
        np.testing.assert_array_equal(found[name], vector)
        assert found[name].dtype == vector.dtype
    assert "absent" not in found
    with pytest.raises(KeyError):
        found["absent"]


def test_the_source_tells_apart_what_gives_other_vectors():
    changes = {"layer": "words", "fingerprint": "0" * 64, "vocabulary": "0" * 64, "lower_case": False, "max_words": 20}
    sources = {dataclasses.replace(SETTINGS, **{key: value}).source for key, value in changes.items()}
    assert len(sources | {SETTINGS.source}) == 6
    assert dataclasses.replace(SETTINGS, checkpoint="moved").source == SETTINGS.source


def test_others_files_have_no_source(tmp_path):
    np.savez(tmp_path / "others.npz", a=np.ones(2))
    assert (TextVectors(tmp_path / "others.npz").source, TextVectors(tmp_path / "others.npz")["a"].shape) == ("", (2,))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "v#0.npy", np.ones(2))
    assert list(TextVectors(tmp_path / "folder")) == ["v#0"]


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(FeatureError, match="no such file"):
        TextVectors(tmp_path / "absent.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 half a file")
    for name in ("array.npy", "bad.npz"):
        with pytest.raises(FeatureError, match=r"not a \.npz file of arrays by qid"):
            TextVectors(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match="holds no vectors"):
        TextVectors(tmp_path / "empty")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(FeatureError, match=r"objects\.npz: a: damaged"):
        TextVectors(tmp_path / "objects.npz")["a"]
    text_vectors.save(tmp_path / "v.npz", {"a": np.ones(3)}, SETTINGS)
    for content, message in (("{", "damaged"), (json.dumps({"layer": "words"}), "has no key 'dim'")):
        (tmp_path / "v.json").write_text(content)
        with pytest.raises(FeatureError, match=message):
            TextVectors(tmp_path / "v.npz")
    with pytest.raises(FeatureError, match=r"ends in \.npz"):
        text_vectors.save(tmp_path / "v", {}, SETTINGS)

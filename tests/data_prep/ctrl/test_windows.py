"""CTRL's windows from our own features, and that others are refused when they are read."""

import csv
import dataclasses
import pickle

import numpy as np
import pytest

from data_prep.ctrl import prepare as preparation
from vlm_jax import config as configs
from vlm_jax import features as feature_files
from vlm_jax.errors import DataError
from vlm_jax.features import Settings
from vlm_jax.systems.ctrl import data
from vlm_jax.systems.ctrl.config import default_config
from vlm_jax.systems.ctrl.samples import SampleSpec
from vlm_jax.systems.ctrl.windows import sliding_windows

SETTINGS = Settings("mixed_5c", 16, 8, 5.0, 224, "center", "float32", 4, "f" * 64)


@pytest.fixture
def features(tmp_path):
    """Row i holds the number i; 30 rows reach over 49.6 seconds, 48 of them for sure."""
    folder = tmp_path / "features"
    feature_files.write_settings(folder, SETTINGS)
    feature_files.save(folder, "a/long", np.repeat(np.arange(30.0), 4).reshape(30, 4).astype(np.float32))
    feature_files.save(folder, "short", np.ones((1, 4), np.float32))
    feature_files.save(folder, "nan", np.full((30, 4), np.nan, np.float32))
    feature_files.save(folder, "wide", np.ones((30, 5), np.float32))
    return folder


def prepare(tmp_path, *words):
    preparation.main(["windows", "--output", str(tmp_path / "windows"), "--num_shards=1", *map(str, words)])
    with open(tmp_path / "windows" / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def spec(features):
    source = "mixed_5c:16/8@5:224center:float32:" + "f" * 16
    return SampleSpec(visual_dim=12, sentence_dim=3, video_source=source)


def test_a_window_is_the_mean_of_the_rows_inside_it(tmp_path, features):
    words = ["--features", features, "--fps=20", "--lengths", 64, 128, "--ending=.avi"]
    reasons = {"short.avi": "shorter than a window", "nan.avi": "not finite", "wide.avi": "unreadable"}
    (tmp_path / "frames.pkl").write_bytes(pickle.dumps({"short": 40}))
    assert prepare(tmp_path, *words, "--frames", tmp_path / "frames.pkl") == reasons
    (video,) = data.load_windows(str(tmp_path / "windows"), {"a/long.avi"}, spec(features))
    assert video.fps == 20
    assert sorted(map(tuple, video.spans)) == sorted(map(tuple, sliding_windows(48 * 20, (64, 128)).tolist()))
    for span, feature in zip(video.spans, video.features, strict=True):
        middles = (np.arange(30) * 8 + 8) / 5 * 20
        inside = np.flatnonzero((middles >= span[0]) & (middles < span[1]))
        np.testing.assert_allclose(feature, inside.mean() * np.ones(4))
    names = [f"{start}_{end}" for start, end in video.spans]
    assert names == sorted(names), "ties go by the order of the names, as with released files"
    config = default_config()
    config.data.windows = str(tmp_path / "windows")
    configs.describe(config)
    assert config.model.visual_dim == 12
    assert config.data.video_source == SETTINGS.source
    assert Settings(**config.data.video_features) == SETTINGS
    assert config.data.window.to_dict() == {"fps": 20.0, "lengths": [64, 128], "overlap": 0.8}


def test_windows_reach_the_end_of_a_film_whose_duration_is_known(tmp_path, features):
    """The last row holds frames up to the end, and black ones behind it."""
    feature_files.save(features, "a/long", feature_files.load(features, "a/long"), 49.3)
    prepare(tmp_path, "--features", features, "--fps=20", "--lengths", 64, 128)
    (video,) = data.load_windows(str(tmp_path / "windows"), {"a/long"}, spec(features))
    assert video.num_frames == 986
    assert sorted(map(tuple, video.spans)) == sorted(map(tuple, sliding_windows(986, (64, 128)).tolist()))
    assert video.spans.max() > 48 * 20


def test_features_made_otherwise_are_refused(tmp_path, features):
    prepare(tmp_path, "--features", features, "--fps=20")
    for changes in ({"video_source": ""}, {"video_source": "mixed_5c:16/8@5:224center:float32:" + "0" * 16}):
        with pytest.raises(DataError, match=r"prepared with video_source = 'mixed_5c:16/8@5.*', the config asks for"):
            data.load_windows(str(tmp_path / "windows"), {"a/long"}, dataclasses.replace(spec(features), **changes))


def test_mistakes_are_one_line(tmp_path, features):
    with pytest.raises(DataError, match="--fps: say in how many frames a second"):
        prepare(tmp_path, "--features", features)
    with pytest.raises(DataError, match="features of 4 numbers, --dim asks for 4096"):
        prepare(tmp_path, "--features", features, "--fps=20", "--dim=4096")
    (features / "features.json").write_text("{")
    with pytest.raises(DataError, match=r"features\.json: damaged"):
        prepare(tmp_path, "--features", features, "--fps=20")

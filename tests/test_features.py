import dataclasses
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from vlm_jax import features as feature_files
from vlm_jax.features import FeatureError, Settings

SETTINGS = Settings(
    layer="mixed_5c",
    window=16,
    stride=4,
    fps=5.0,
    size=224,
    crop="center",
    dtype="float32",
    dim=3,
    fingerprint="f" * 64,
    checkpoint="runs/one",
    step=7,
)


@pytest.fixture
def folder(tmp_path):
    feature_files.write_settings(tmp_path / "made", SETTINGS)
    feature_files.save(tmp_path / "made", "kitchen/film.part1", np.arange(6, dtype=np.float32).reshape(2, 3))
    return tmp_path / "made"


def test_what_is_written_is_read(folder):
    assert feature_files.read_settings(folder) == SETTINGS
    settings = feature_files.check_settings(folder, {"layer": "mixed_5c", "stride": 4, "fps": 5})
    assert settings == SETTINGS
    features = feature_files.load(folder, "kitchen/film.part1", settings)
    assert features.tolist() == [[0, 1, 2], [3, 4, 5]]
    names = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert names == ["features.json", "film.part1.duration.json", "film.part1.npy"]
    stated = json.loads((folder / "features.json").read_text())
    assert stated["row_begins_seconds"] == "row * stride / fps"
    assert stated["row_lasts_seconds"] == 3.2
    assert settings.seconds(3) == (2.4, 5.6)


@pytest.mark.parametrize(
    ("frames", "window", "stride", "rows"),
    [(1, 16, 16, 1), (16, 16, 16, 1), (17, 16, 16, 2), (33, 16, 8, 4), (32, 16, 8, 3), (20, 4, 8, 3), (13, 4, 8, 2)],
)
def test_rows_cover_a_video(frames, window, stride, rows):
    settings = dataclasses.replace(SETTINGS, window=window, stride=stride)
    assert settings.rows(frames) == rows
    shown = {frame for row in range(rows) for frame in range(row * stride, row * stride + window)}
    assert stride > window or set(range(frames)) <= shown


@pytest.mark.parametrize(
    ("key", "value"),
    [("fingerprint", "0" * 64), ("layer", "video_embedding"), ("stride", 16), ("fps", 10), ("dtype", "float16")],
)
def test_features_made_otherwise_are_refused(folder, key, value):
    found = getattr(SETTINGS, key)
    with pytest.raises(FeatureError) as caught:
        feature_files.check_settings(folder, {"window": 16, key: value})
    assert str(caught.value) == f"{folder / 'features.json'}: made with {key} = {found!r}, expected {value!r}"
    with pytest.raises(FeatureError, match=f"made with {key} = "):
        feature_files.write_settings(folder, dataclasses.replace(SETTINGS, **{key: value}))
    assert feature_files.read_settings(folder) == SETTINGS


def test_a_checkpoint_that_was_moved_is_the_same(folder):
    feature_files.write_settings(folder, dataclasses.replace(SETTINGS, checkpoint="elsewhere", step=None))
    assert feature_files.read_settings(folder).checkpoint == "runs/one"


def test_many_begin_at_the_same_time(tmp_path):
    """Of two kinds of settings one wins, and everybody with the other is told."""
    kinds = [SETTINGS, dataclasses.replace(SETTINGS, stride=8)]
    told, start = [], threading.Barrier(16)

    def begin(settings):
        start.wait()
        try:
            feature_files.write_settings(tmp_path, settings)
        except FeatureError:
            told.append(settings)

    threads = [threading.Thread(target=begin, args=(kinds[number % 2],)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = feature_files.read_settings(tmp_path)
    assert len(told) == 8
    assert won not in told
    assert [path.name for path in tmp_path.iterdir()] == ["features.json"]


def test_a_video_s_duration_lies_beside_its_features(folder):
    assert feature_files.load_duration(folder, "kitchen/film.part1") == 0
    feature_files.save(folder, "a.b", np.zeros((2, 3), np.float32), 7.25)
    assert feature_files.load_duration(folder, "a.b") == 7.25
    assert feature_files.load_duration(folder, "other") == 0
    for content in ("", "[]", '{"seconds": -1}', '{"seconds": NaN}', '{"seconds": "long"}'):
        (folder / "a.b.duration.json").write_text(content)
        with pytest.raises(FeatureError, match=r"a\.b\.duration\.json: expected an object with 'seconds'"):
            feature_files.load_duration(folder, "a.b")


def test_what_cannot_be_read_is_one_line(folder, tmp_path):
    def said(call, *arguments):
        with pytest.raises(FeatureError) as caught:
            call(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no features.json there" in said(feature_files.read_settings, tmp_path)
    assert "no setting 'strid'" in said(feature_files.check_settings, folder, {"strid": 4})
    assert "was skipped or is still to be extracted" in said(feature_files.load, folder, "other")
    feature_files.save(folder, "wide", np.zeros((2, 4), np.float32))
    assert "found float32 [2, 4], expected float32 [N, 3]" in said(feature_files.load, folder, "wide")
    whole = (folder / "kitchen" / "film.part1.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-5])
    assert "cut.npy: damaged" in said(feature_files.load, folder, "cut")
    (folder / "empty.npy").write_bytes(b"")
    assert "empty.npy: damaged" in said(feature_files.load, folder, "empty")
    content = json.loads((folder / "features.json").read_text())
    del content["window"]
    (folder / "features.json").write_text(json.dumps(content))
    assert "has no key 'window'" in said(feature_files.read_settings, folder)
    (folder / "features.json").write_text("{")
    assert "features.json: damaged" in said(feature_files.read_settings, folder)


def test_tensorflow_stays_out(root):
    code = "import sys; import vlm_jax.features; assert not {'tensorflow', 'jax'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0

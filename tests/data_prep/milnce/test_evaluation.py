import csv
import json

import numpy as np
import pytest
import tensorflow as tf

from data_prep.milnce import prepare as milnce
from data_prep.milnce.evaluation import hmdb51_items
from vlm_jax.data.protocol import PROTOCOL
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce.evaluation_data import CLASSIFICATION_FEATURES
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

HEADER = ("video_id", "label", "split1", "split2", "split3")


def write_rows(path, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def prepare(folder, output, *arguments):
    inputs = ["--csv", folder / "hmdb51.csv", "--videos", folder, "--output", output, "--num_shards", 2]
    milnce.main(["hmdb51", *map(str, [*inputs, "--windows", 3, "--num_frames", 8, "--size", 24, *arguments])])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Films of 12 and 5 frames, one that is missing and one that is no film."""
    folder = tmp_path_factory.mktemp("hmdb")
    rng = np.random.default_rng(0)
    for name, count in (("wave/long film.avi", 12), ("cart_wheel/short.avi", 5)):
        (folder / name).parent.mkdir()
        write_video(folder / name, rng.integers(0, 256, (count, 32, 48, 3), np.uint8), 30)
    (folder / "wave" / "broken.avi").write_text("this is no film")
    write_rows(
        folder / "hmdb51.csv",
        HEADER,
        ("long film.avi", "wave_test", 1, 2, 0),
        ("short.avi", "cart_wheel_test", 2, 1, 1),
        ("broken.avi", "wave_test", 1, 1, 1),
        ("missing.avi", "a_test_test", 0, 0, 0),
    )
    prepare(folder, folder / "made")
    return folder


def read(directory):
    split = Split(directory, "videos")
    serialised = [one for path in split.paths for one in tf.data.TFRecordDataset(str(path))]
    return [{key: value.numpy() for key, value in CLASSIFICATION_FEATURES.deserialize_example(one).items()}
            for one in serialised]  # fmt: skip


def test_frames_are_stored_once_and_windows_point_to_them(made):
    long, short = read(made / "made")
    assert (long["video_path"], long["label"]) == (b"wave/long film.avi", b"wave")
    assert (long["splits"].tolist(), short["splits"].tolist()) == ([1, 2, 0], [2, 1, 1])
    frames = decode.read_frames(made / "wave" / "long film.avi", filters=decode.square_crop(24))
    assert len(frames) == len(long["frames"]) == 12
    np.testing.assert_array_equal(long["frames"], frames)
    # From 0 to 12 - 8 in equal steps.
    assert long["windows"].reshape(3, 8).tolist() == [list(range(start, start + 8)) for start in (0, 2, 4)]
    assert short["frames"].shape == (5, 24, 24, 3)
    assert short["windows"].reshape(3, 8).tolist() == [[0, 1, 2, 3, 4, -1, -1, -1]] * 3


def test_frames_that_no_window_shows_are_left_out(made, tmp_path):
    prepare(made, tmp_path, "--windows", 2, "--num_frames", 3)
    long, _ = read(tmp_path)
    frames = decode.read_frames(made / "wave" / "long film.avi", filters=decode.square_crop(24))
    np.testing.assert_array_equal(long["frames"], frames[[0, 1, 2, 9, 10, 11]])
    assert long["windows"].tolist() == [0, 1, 2, 3, 4, 5]


def test_protocol_and_what_is_left_out(made):
    protocol = json.loads((made / "made" / PROTOCOL).read_text())
    assert protocol["name"] == "hmdb51"
    assert protocol["protocol"] == {
        "kind": "milnce_classification",
        "windows": 3,
        "num_frames": 8,
        "size": 24,
        "strict": False,
        "classes": ["a_test", "cart_wheel", "wave"],
    }
    with open(made / "made" / "skipped.csv", newline="") as file:
        skipped = {row["item"]: row["reason"] for row in csv.DictReader(file)}
    assert skipped == {"wave/broken.avi": "unreadable", "a_test/missing.avi": "missing"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("video_id", "label", "split1", "split2")], "no column 'split3'; it has video_id, label, split1, split2"),
        ([HEADER, ("a.avi", "wave_test", 1, 3, 0)], "line 2, column 'split2': expected 1 .train., 2 .* found '3'"),
        ([HEADER, ("a.avi", "wave_test", 1, "", 0)], "line 2, column 'split2': .* found ''"),
        ([HEADER, ("a.avi", "wave_test", 1, 2)], "line 2 has fewer cells than the header"),
        ([HEADER, ("a.avi", "wave_test", 1, 2, 0), ("b.avi", "", 1, 2, 0)], "line 3: expected a video_id and a label"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        hmdb51_items(write_rows(tmp_path / "hmdb51.csv", *rows))
    assert "\n" not in str(caught.value)
    assert "hmdb51.csv" in str(caught.value)

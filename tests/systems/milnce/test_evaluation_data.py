import csv
import itertools
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data_prep.milnce import prepare as preparation
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce import data as milnce
from vlm_jax.systems.milnce import evaluation_data as milnce_evaluation
from vlm_jax.text import word_list
from vlm_jax.types import DataShard
from vlm_jax.video import decode
from vlm_jax.video.sampling import frame_windows
from vlm_jax.video.write import write_video


@pytest.fixture(scope="module")
def clips_folder(root):
    return root / "data_prep" / "clips"


@pytest.fixture(scope="module")
def queries(clips_folder, tmp_path_factory):
    """A retrieval set of five items in two shards."""
    folder = tmp_path_factory.mktemp("queries")
    rows = [
        ["video_path", "start", "end", "text"],
        ["bunny.mp4", 11.8, 15.7, "a stream runs"],
        ["chaplin.mp4", 9.08, 30, "ends after the video"],
        ["bunny.mp4", 2, 2.5, "naïve"],
        ["missing.mp4", 1, 2, "is skipped"],
        ["nasa_webb.mp4", 0, 13, ""],
    ]
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    sizes = "--num_shards 2 --windows 2 --num_frames 4 --fps 5 --size 32"
    inputs = ["--csv", folder / "list.csv", "--videos", clips_folder, "--output", folder / "made"]
    preparation.main(["segments", *map(str, inputs), *sizes.split()])
    return folder / "made"


QUERY_VOCABULARY = {"stream": 1, "a": 2, "naïve": 3, "nan": 4, "the": 5, "video": 6}
PROTOCOL = {"windows": 2, "num_frames": 4, "fps": 5, "size": 32}


def retrieval(directory, batch_size, index=0, count=1, split="test", **changes):
    shard = DataShard(index, count, batch_size)
    return milnce_evaluation.retrieval_pipeline(
        directory, split, **{**PROTOCOL, **changes}, max_words=5, vocabulary=QUERY_VOCABULARY, shard=shard
    )


def test_retrieval_items_are_the_decoders_own_clips(queries, clips_folder):
    (batch,) = retrieval(queries, 4)
    items = milnce_evaluation.retrieval_items(queries, "test")
    assert [item["video_id"] for item in items] == ["bunny.mp4", "chaplin.mp4", "bunny.mp4", "nasa_webb.mp4"]
    assert [item["text"] for item in items] == ["a stream runs", "ends after the video", "naïve", "nan"]
    assert [(item["start"], item["end"]) for item in items] == [(11.8, 15.7), (9.08, 30.0), (2.0, 2.5), (0.0, 13.0)]
    # The last window ends 0.4 s before the end; what is too short begins at its start.
    assert items[0]["clip_starts"] == [11.8, 15.7 - 0.8 - 0.4]
    assert items[2]["clip_starts"] == [2.0, 2.0]
    assert batch["video"].shape == (4, 2, 4, 32, 32, 3)
    for item, video in zip(items, batch["video"], strict=True):
        read = decode.read_clips(clips_folder / item["video_id"], item["clip_starts"], 4, 5, decode.square_crop(32))
        np.testing.assert_array_equal(video, read)
    assert not batch["video"][1, 1].any()  # begins after the video's end
    assert batch["text"].tolist() == [[2, 1, 0, 0, 0], [5, 6, 0, 0, 0], [3, 0, 0, 0, 0], [4, 0, 0, 0, 0]]
    assert batch["text"].dtype == np.int32
    assert batch["text"][0].tolist() == word_list.encode(items[0]["text"], QUERY_VOCABULARY, 5).tolist()


def test_retrieval_over_processes(queries):
    (whole,) = retrieval(queries, 4)
    parts = [list(retrieval(queries, 6, index, 3)) for index in range(3)]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert [part[0]["mask"].tolist() for part in parts] == [[1, 1], [1, 1], [0, 0]]
    for name in ("video", "text", "index"):
        np.testing.assert_array_equal(np.concatenate([part[0][name] for part in parts[:2]]), whole[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": 4}, "prepared with windows = 2, the config asks for 4"),
        ({"num_frames": 8}, "prepared with num_frames = 4, the config asks for 8"),
        ({"fps": 10}, "prepared with fps = 5"),
        ({"size": 64}, "prepared with size = 32"),
        ({"split": "validation"}, "no split 'validation'; it has test"),
    ],
)
def test_retrieval_protocols_that_do_not_fit(queries, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        retrieval(queries, 2, **changes)
    assert "\n" not in str(caught.value)


def test_a_training_split_is_not_there(queries):
    clips = milnce.Clips(4, 5, 32, 2.0, 1, 4, True, False, True)
    with pytest.raises(DataError, match="no split 'train'; it has test"):
        milnce.train_pipeline(queries, clips, {}, DataShard(), streams=1, block=4, workers=1)


def test_items_are_listed_without_reading_their_frames(queries, tmp_path):
    """The same as whole records say, also where the frames, and with them the checksums, are destroyed."""
    split = Split(queries, "test")
    whole = []
    for serialised in tf.data.TFRecordDataset([str(path) for path in split.paths]):
        decoders = {"frames": tfds.decode.SkipDecoding()}
        record = milnce_evaluation.RETRIEVAL_FEATURES.deserialize_example(serialised, decoders=decoders)
        assert len(record.pop("frames")) == 8
        whole.append({name: value.numpy() for name, value in record.items()})
    items = milnce_evaluation.retrieval_items(queries, "test")
    assert len(items) == len(whole) == 4
    for item, record in zip(items, whole, strict=True):
        assert item.keys() == record.keys()
        assert item["video_id"].encode() == record["video_id"]
        assert item["text"].encode() == record["text"]
        assert (item["start"], item["end"]) == (record["start"], record["end"])
        assert item["clip_starts"] == record["clip_starts"].tolist()
    shutil.copytree(queries, tmp_path, dirs_exist_ok=True)
    for path in Split(tmp_path, "test").paths:
        path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"gone"))
    assert milnce_evaluation.retrieval_items(tmp_path, "test") == items


def test_a_damaged_record_is_named(queries, tmp_path):
    shutil.copytree(queries, tmp_path, dirs_exist_ok=True)
    path = Split(tmp_path, "test").paths[0]
    path.write_bytes(path.read_bytes()[:12] + b"\x7f" * 100)
    with pytest.raises(DataError, match="no undamaged record at byte 0") as caught:
        milnce_evaluation.retrieval_items(tmp_path, "test")
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A classification set of three videos in two shards, one of them shorter than a window."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    rows = [["video_id", "label", "split1", "split2", "split3"]]
    for number, (label, count) in enumerate((("wave", 9), ("chew", 3), ("wave", 30))):
        (folder / label).mkdir(exist_ok=True)
        write_video(folder / label / f"{number}.mp4", rng.integers(0, 256, (count, 40, 32, 3), np.uint8), 30)
        rows.append([f"{number}.mp4", f"{label}_test", number, 1, 2])
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    sizes = "--num_shards 2 --windows 3 --num_frames 4 --size 16"
    inputs = ["--csv", folder / "list.csv", "--videos", folder, "--output", folder / "made"]
    preparation.main(["hmdb51", *map(str, inputs), *sizes.split()])
    return folder


def test_classification_windows_are_the_decoders_own_frames(labelled):
    def batches(batch_size, index=0, count=1, windows=3):
        return milnce_evaluation.classification_pipeline(
            labelled / "made", "videos", windows, 4, 16, DataShard(index, count, batch_size)
        )

    (batch,) = batches(3)
    assert batch["video"].shape == (3, 3, 4, 16, 16, 3)
    assert batch["video"].dtype == np.uint8
    assert batch["label"].tolist() == [1, 0, 1], "in alphabetical order"
    assert batch["splits"].tolist() == [[0, 1, 2], [1, 1, 2], [2, 1, 2]]
    assert (batch["label"].dtype, batch["splits"].dtype) == (np.int32, np.int32)
    for name, video in zip(("wave/0.mp4", "chew/1.mp4", "wave/2.mp4"), batch["video"], strict=True):
        frames = decode.read_frames(labelled / name, filters=decode.square_crop(16))
        padded = np.concatenate([frames, np.zeros((1, 16, 16, 3), np.uint8)])
        np.testing.assert_array_equal(video, padded[frame_windows(len(frames), 3, 4)])
    assert not batch["video"][1, :, 3].any()
    parts = [list(batches(2, index, 2)) for index in range(2)]
    assert [[one["mask"].tolist() for one in part] for part in parts] == [[[1], [1]], [[1], [0]]]
    np.testing.assert_array_equal(parts[0][1]["video"][0], batch["video"][2])
    with pytest.raises(DataError, match="prepared with windows = 3, the config asks for 10"):
        batches(3, windows=10)


def test_sets_of_another_kind_are_refused(queries, labelled):
    with pytest.raises(DataError, match=r"prepared with kind = 'milnce_retrieval', .* 'milnce_classification'"):
        milnce_evaluation.classification_pipeline(queries, "test", 2, 4, 32, DataShard())
    with pytest.raises(DataError, match=r"prepared with kind = 'milnce_classification', .* 'milnce_retrieval'"):
        retrieval(labelled / "made", 2, split="videos")


@pytest.mark.parametrize("order", ["shuffled", "reversed"])
def test_frames_in_another_order(queries, order):
    """The same frames; whatever the batch, each item is shuffled in its own way."""
    filmed = next(iter(retrieval(queries, 4)))["video"]
    video = next(iter(retrieval(queries, 4, frame_order=order)))["video"]
    alone = [batch["video"][0] for batch in itertools.islice(retrieval(queries, 1, frame_order=order), 4)]
    np.testing.assert_array_equal(video, alone)
    assert not np.array_equal(video, filmed)
    if order == "reversed":
        np.testing.assert_array_equal(video, filmed[:, :, ::-1])
    for theirs, ours in zip(filmed.reshape(-1, *filmed.shape[2:]), video.reshape(-1, *video.shape[2:]), strict=True):
        assert sorted(frame.tobytes() for frame in theirs) == sorted(frame.tobytes() for frame in ours)

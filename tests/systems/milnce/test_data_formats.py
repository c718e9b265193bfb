"""Records that hold mp4 segments give what records of JPEGs give."""

import collections
import csv
import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from data_prep.milnce import prepare as preparation
from vlm_jax.data import images, records
from vlm_jax.data.protocol import read_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce import data as milnce
from vlm_jax.systems.milnce.data import Clips
from vlm_jax.types import DataShard
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

CLIPS = Clips(
    num_frames=8,
    fps=5,
    size=48,
    min_time=2.0,
    num_candidates=2,
    max_words=4,
    crop_only=True,
    center_crop=False,
    random_flip=True,
)
SECONDS = 13
TIMES = [(0.0, 9.9), (0.99, 6.62), (4.0, 9.0), (5.3, 5.9), (9.08, 11.22), (11.87, 16.94), (19.44, 21.79)]
VOCABULARY = {f"w{number}": number + 1 for number in range(len(TIMES))}


def prepare(folder, output, *arguments):
    sizes = "--short_side 64 --smallest_side 48 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6 --segment_seconds 3"
    inputs = ["--list", folder / "list.csv", "--videos", folder, "--captions", folder, "--output", output]
    preparation.main(["howto100m", *map(str, inputs), *sizes.split(), *arguments])
    return output


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Two videos whose frames can be told apart by colour, with an edge that shows where a crop was taken."""
    folder = tmp_path_factory.mktemp("coded")
    digits = np.arange(SECONDS * 25)[:, None] // np.array([1, 7, 49]) % 7
    frames = np.broadcast_to((40 + 30 * digits)[:, None, None], (SECONDS * 25, 64, 96, 3)).astype(np.uint8)
    frames[:, :32, 48:] = 255 - frames[:, :32, 48:]
    for name, content in (("one", frames), ("two", frames[::-1])):
        write_video(folder / f"{name}.mp4", content, 25)
        with open(folder / f"{name}.csv", "w", newline="") as file:
            rows = [(*times, f"w{number}") for number, times in enumerate(TIMES)]
            csv.writer(file).writerows([("start", "end", "text"), *rows])
    (folder / "list.csv").write_text("video_path\none.mp4\ntwo.mp4\n")
    return folder


@pytest.fixture(scope="module")
def made(coded, tmp_path_factory):
    """The same videos as JPEGs and as mp4 segments."""
    folder = tmp_path_factory.mktemp("made")
    return {
        "jpeg": prepare(coded, folder / "jpeg", "--quality", "95"),
        "mp4": prepare(coded, folder / "mp4", "--format", "mp4", "--crf", "12"),
    }


def train(directory, clips=CLIPS, batch_size=2):
    shard = DataShard(0, 1, batch_size, 3)
    return milnce.train_pipeline(directory, clips, VOCABULARY, shard, streams=1, block=4, workers=2)


def read(directory):
    split = Split(directory, "train")
    form = milnce.records_format(split)
    return [
        {name: value.numpy() for name, value in milnce.read_training(serialised, form).items()}
        for path in split.paths
        for serialised in tf.data.TFRecordDataset(str(path))
    ]


def test_records_differ_in_nothing_but_their_frames(made):
    jpeg, mp4 = read(made["jpeg"]), read(made["mp4"])
    assert len(jpeg) == len(mp4) == 10
    for one, two in zip(jpeg, mp4, strict=True):
        assert set(one) - set(two) == {"frames"}
        assert set(two) - set(one) == {"mp4"}
        for name in set(one) & set(two):
            np.testing.assert_array_equal(one[name], two[name])
        count = len(one["frames"])
        assert images.seconds_shown({"mp4": tf.constant(two["mp4"])}, 5) == count / 5
        assert count in (18, 5)
    settings = [read_protocol(made[name])["protocol"] for name in ("jpeg", "mp4")]
    assert [found["format"] for found in settings] == ["jpeg", "mp4"]


@pytest.mark.parametrize("crop_only", [True, False])
@pytest.mark.parametrize("size", [48, 35])
def test_batches_are_the_same_but_for_compression(made, crop_only, size):
    """The same captions, seconds, crops and mirrors, frame for frame; black where there is no film."""
    clips = dataclasses.replace(CLIPS, crop_only=crop_only, size=size)
    pairs = zip(train(made["jpeg"], clips), train(made["mp4"], clips), strict=True)
    black = collections.Counter()
    for one, two in itertools.islice(pairs, 40):
        np.testing.assert_array_equal(one["text"], two["text"])
        np.testing.assert_array_equal(one["flip"], two["flip"])
        assert two["video"].dtype == np.uint8
        difference = np.abs(one["video"].astype(int) - two["video"])
        # Neighbouring frames differ by 30 in one colour at least; colours spread by a pixel at the edges, and the
        # square that is scaled begins at an even one.
        assert difference.mean((2, 3, 4)).max() < 6
        assert np.median(difference, (2, 3)).max() < 8
        missing = ~one["video"].any((2, 3, 4))
        np.testing.assert_array_equal(missing, ~two["video"].any((2, 3, 4)))
        black.update(missing.sum(1).tolist())
    assert black[0] > 20
    assert black[8] > 0  # nothing but black
    assert len(black) > 2  # black at the end


@pytest.fixture(scope="module")
def whole(coded, tmp_path_factory):
    """The same videos as whole records: JPEGs at the video's own size, and the files as they are."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        "jpeg": prepare(coded, folder / "jpeg", "--quality", "95", "--segment_seconds", "0"),
        "original": prepare(coded, folder / "original", "--format", "original", "--segment_seconds", "0"),
    }


@pytest.mark.parametrize("crop_only", [True, False])
def test_original_videos_give_the_same_clips(whole, crop_only):
    clips = dataclasses.replace(CLIPS, crop_only=crop_only)
    pairs = zip(train(whole["jpeg"], clips), train(whole["original"], clips), strict=True)
    black = 0
    for one, two in itertools.islice(pairs, 20):
        np.testing.assert_array_equal(one["text"], two["text"])
        np.testing.assert_array_equal(one["flip"], two["flip"])
        difference = np.abs(one["video"].astype(int) - two["video"])
        assert np.median(difference, (2, 3)).max() < 8
        np.testing.assert_array_equal(~one["video"].any((2, 3, 4)), ~two["video"].any((2, 3, 4)))
        black += int((~two["video"].any((2, 3, 4))).sum())
    assert black > 0


@pytest.mark.parametrize(("crop_only", "filters"), [(True, decode.crop), (False, decode.square_crop)])
def test_a_clip_of_an_original_video_is_the_decoder_s_own(coded, whole, crop_only, filters):
    """Seek, resampling and crop by FFmpeg itself, on the file that was put into the record."""
    one, _ = read(whole["original"])
    assert one["video"] == (coded / "one.mp4").read_bytes()
    assert (one["height"], one["width"], one["start"], one["caption_total"]) == (64, 96, 0, len(TIMES))
    for start, u, w in ((0, 0.0, 1.0), (4, 0.3, 0.6), (12, 0.77, 0.1)):
        options = {"num_frames": 8, "fps": 5}
        expected = decode.read_clip(coded / "one.mp4", start=start, filters=filters(48, u, w), **options)
        place = (tf.constant(one["video"]), tf.constant(start), tf.constant(u, tf.float64), tf.constant(w, tf.float64))
        found = tf.function(images.decode_video_clip)(*place, size=48, crop_only=crop_only, **options)
        np.testing.assert_array_equal(found, expected)


def test_original_videos_are_checked_and_not_cut(coded, whole, tmp_path, capsys):
    with pytest.raises(SystemExit):
        preparation.main(["--check", str(whole["original"])])
    output = capsys.readouterr().out
    assert "2 records checked, 2 problems" in output
    assert "one ends at 13 s, a caption begins at 19.44 s" in output
    with pytest.raises(DataError, match="--format original: keeps videos whole and at their size"):
        prepare(coded, tmp_path, "--format", "original")


def test_a_killed_preparation_makes_the_same_bytes(coded, made, tmp_path):
    again = prepare(coded, tmp_path, "--format", "mp4", "--crf", "12", "--num_shards", "2", "--shard_index", "1")
    name = records.shard_path(again, "howto100m", "train", 1, 2).name
    assert (again / name).read_bytes() == (made["mp4"] / name).read_bytes()


def test_the_other_format_does_not_go_on(made, coded):
    with pytest.raises(DataError, match="begun with format = 'mp4', now it is 'jpeg'"):
        prepare(coded, made["mp4"], "--crf", "12")


def test_an_unknown_format(made, tmp_path):
    for path in made["jpeg"].iterdir():
        if path.name != "protocol.json":
            (tmp_path / path.name).symlink_to(path)
    text = (made["jpeg"] / "protocol.json").read_text()
    (tmp_path / "protocol.json").write_text(text.replace('"format": "jpeg"', '"format": "film"'))
    with pytest.raises(DataError, match=r"format = 'film' is not one of jpeg, mp4, original$"):
        train(tmp_path)
    # Records made before there was a choice.
    (tmp_path / "protocol.json").write_text(text.replace('"format": "jpeg",', ""))
    assert next(iter(train(tmp_path)))["video"].any()


def damaged(folder, source, name):
    """A copy of a data set, the frames of whose first record are damaged before its checksums were made."""
    for path in source.iterdir():
        if "tfrecord" not in path.name:
            (folder / path.name).symlink_to(path)
    for path in source.glob("*.tfrecord-*"):
        with tf.io.TFRecordWriter(str(folder / path.name)) as writer:
            for serialised in tf.data.TFRecordDataset(str(path)):
                example = tf.train.Example.FromString(serialised.numpy())
                values = example.features.feature[name].bytes_list.value
                for number, value in enumerate(values):
                    values[number] = value[:-200] + b"?" * min(200, len(value))
                writer.write(example.SerializeToString(deterministic=True))
    return folder


@pytest.mark.parametrize(("form", "name"), [("jpeg", "frames"), ("mp4", "mp4")])
def test_damaged_frames_are_one_line(made, tmp_path, form, name):
    """Whole records, by their checksums, with frames that are not."""
    folder = damaged(tmp_path, made[form], name)
    with pytest.raises(DataError, match="cannot decode the record at byte") as caught:
        list(itertools.islice(train(folder), 20))
    message = str(caught.value)
    assert message.startswith(str(folder / "howto100m-train.tfrecord-0000"))
    assert message.endswith("delete the shard and make it again")
    assert "\n" not in message
    assert "{{" not in message


def test_disk_use(made):
    """Bytes over the seconds of film that the records hold, each second once."""
    for directory in made.values():
        size = sum(path.stat().st_size for path in directory.glob("*.tfrecord-*"))
        assert train(directory).examples.bytes_per_hour() == pytest.approx(size / (2 * SECONDS) * 3600)


@pytest.mark.parametrize(
    ("crf", "message"), [("-1", "--crf: expected 0 to 51, found -1"), ("52", "--crf: .* found 52")]
)
def test_rate_factors_that_h264_does_not_have(coded, tmp_path, crf, message):
    with pytest.raises(DataError, match=message):
        prepare(coded, tmp_path, "--format", "mp4", "--crf", crf)

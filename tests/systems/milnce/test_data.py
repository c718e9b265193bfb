import collections
import csv
import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data_prep.milnce import prepare as preparation
from vlm_jax import config as configs
from vlm_jax.data import records
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce import captions
from vlm_jax.systems.milnce import config as milnce_config
from vlm_jax.systems.milnce import data as milnce
from vlm_jax.systems.milnce import evaluation_data as milnce_evaluation
from vlm_jax.systems.milnce.data import TRAINING_FEATURES, Clips
from vlm_jax.systems.milnce.evaluation_data import RETRIEVAL_FEATURES
from vlm_jax.types import DataShard
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

CLIPS = Clips(
    num_frames=8,
    fps=5,
    size=48,
    min_time=2.0,
    num_candidates=1,
    max_words=4,
    crop_only=True,
    center_crop=False,
    random_flip=True,
)
SECONDS = 13
# Short, long, overlapping and equal ones, times of two decimals, and some that lie after the video's end.
TIMES = [
    (0.0, 9.9),
    (0.21, 0.3),
    (0.99, 6.62),
    (4.0, 4.0),
    (4.0, 9.0),
    (5.3, 5.9),
    (6.14, 8.04),
    (6.14, 8.04),
    (9.08, 11.22),
    (11.87, 16.94),
    (19.44, 21.79),
]
TEXTS = [f"w{number} shared" for number in range(len(TIMES))]
VOCABULARY = {"shared": 1, **{f"w{number}": number + 2 for number in range(len(TIMES))}}


def colours():
    """One plain colour for each frame of the coded video: `[N, 3]`."""
    digits = np.arange(SECONDS * 25)[:, None] // np.array([1, 7, 49]) % 7
    return 40 + 30 * digits


@pytest.fixture(scope="module")
def clips_folder(root):
    return root / "data_prep" / "clips"


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A folder with a video whose frames can be told apart, and its captions."""
    folder = tmp_path_factory.mktemp("coded")
    frames = np.broadcast_to(colours()[:, None, None], (SECONDS * 25, 64, 96, 3)).astype(np.uint8)
    write_video(folder / "coded.mp4", frames, 25)
    with open(folder / "coded.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "start", "end", "text"])
        writer.writerows([number, *times, TEXTS[number]] for number, times in enumerate(TIMES))
    (folder / "list.csv").write_text("video_path\ncoded.mp4\n")
    return folder


def prepare(folder, output, *arguments):
    sizes = "--short_side 64 --smallest_side 48 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6 --max_candidates 5"
    inputs = ["--list", folder / "list.csv", "--videos", folder, "--captions", folder, "--output", output]
    preparation.main(["howto100m", *map(str, inputs), *sizes.split(), *arguments])
    return output


@pytest.fixture(scope="module")
def segments(coded, tmp_path_factory):
    """The coded video in segments of three seconds; an epoch visits it once."""
    return prepare(coded, tmp_path_factory.mktemp("segments"), "--segment_seconds", "3")


@pytest.fixture(scope="module")
def whole(coded, tmp_path_factory):
    """The coded video in one record."""
    return prepare(coded, tmp_path_factory.mktemp("whole"), "--segment_seconds", "0")


def read_all(directory, features=TRAINING_FEATURES, split="train"):
    """(record, weight, group) of every record, images not decoded."""
    made = Split(directory, split)
    rows = [(path, row) for shard, path in enumerate(made.paths) for row in made.index(shard)]
    found = []
    for path, row in rows:
        serialised = records.read_record(tf.constant(str(path)), tf.constant(row["offset"]))
        record = features.deserialize_example(serialised, decoders={"frames": tfds.decode.SkipDecoding()})
        found.append(({name: value.numpy() for name, value in record.items()}, row["weight"], row["group"]))
    return found


def train(directory, clips=CLIPS, batch_size=1, seed=0, index=0, count=1, streams=1):
    shard = DataShard(index, count, batch_size, seed)
    return milnce.train_pipeline(directory, clips, VOCABULARY, shard, streams=streams, block=4, workers=2)


def frame_numbers(video):
    """Frame numbers of the coded video that a clip `[T, H, W, 3]` shows, -1 for black."""
    shown = video.astype(float).mean((1, 2))
    distance = np.abs(shown[:, None] - colours()).max(-1)
    numbers = np.where(shown.max(-1) == 0, -1, distance.argmin(1))
    assert (distance.min(1)[numbers >= 0] < 12).all()
    return numbers


def expected_frames(seek):
    """25 frames a second read at 5 from a whole second: 2, 7, 12, ... frames after it; -1 after the end."""
    numbers = seek * 25 + 2 + 5 * np.arange(8)
    return np.where(numbers < SECONDS * 25, numbers, -1)


def seek_ranges():
    """The reference's seek seconds for every caption."""
    ranges = []
    for start, end in TIMES:
        if end - start < 2.0:
            start = max(0, start - (2.0 - (end - start)) / 2)
            end = start + 2.0
        start, end = int(start), int(end)
        ranges.append((start, int(max(start, end - 1.6))))
    return ranges


def test_times_are_exact():
    times = np.array([9.08, 1 / 3, 0.1 + 0.2, 1e7 + 0.01])
    example = {
        **dict.fromkeys(("start", "seek_first", "seek_last", "height", "width", "caption_first", "caption_total"), 0),
        **{"video_id": "é", "frames": [], "caption_start": times, "caption_end": times + 1, "caption_text": []},
    }
    read = TRAINING_FEATURES.deserialize_example(TRAINING_FEATURES.serialize_example(example))
    assert read["caption_start"].numpy().tolist() == times.tolist()
    assert read["caption_end"].numpy().tolist() == (times + 1).tolist()
    item = {"video_id": "a", "text": "b", "start": 9.08, "end": 11.22, "clip_starts": times, "frames": []}
    read = RETRIEVAL_FEATURES.deserialize_example(RETRIEVAL_FEATURES.serialize_example(item))
    assert (float(read["start"]), float(read["end"])) == (9.08, 11.22)
    assert read["clip_starts"].numpy().tolist() == times.tolist()


def test_times_are_exact_on_disk(whole):
    (record, _, _), *others = read_all(whole)
    assert not others
    assert list(zip(record["caption_start"], record["caption_end"], strict=True)) == TIMES
    assert [text.decode() for text in record["caption_text"]] == TEXTS


@pytest.mark.parametrize("kind", ["segments", "whole"])
def test_frames_are_those_of_a_clip_read_from_the_video(kind, coded, request):
    seeks = []
    for record, _, _ in read_all(request.getfixturevalue(kind)):
        assert record["start"] == record["seek_first"]
        assert (record["height"], record["width"]) == (64, 96)
        decoded = [tf.io.decode_jpeg(frame).numpy() for frame in record["frames"]]
        for seek in range(record["seek_first"], record["seek_last"] + 1):
            seeks.append(seek)
            first = 5 * (seek - record["start"])
            clip = np.zeros((8, 64, 96, 3), np.uint8)
            for place, frame in enumerate(decoded[first : first + 8]):
                clip[place] = frame
            np.testing.assert_array_equal(frame_numbers(clip), expected_frames(seek))
            read = decode.read_clip(coded / "coded.mp4", start=seek, num_frames=8, fps=5)
            assert np.abs(read.astype(int) - clip).max() <= 6
    assert sorted(seeks) == list(range(max(last for _, last in seek_ranges()) + 1))


def test_segments_overlap_by_the_clip(segments):
    found = [record for record, _, _ in read_all(segments)]
    assert [int(record["start"]) for record in found] == [0, 3, 6, 9, 12]
    # Three seek seconds, the last with a clip of 8 frames; the next begins after 15.
    assert [len(record["frames"]) for record in found] == [18, 18, 18, 18, 5]
    for one, two in itertools.pairwise(found):
        assert one["frames"][15:].tolist() == two["frames"][:3].tolist()
    # Clips that begin after the video's end belong to the last one.
    assert [int(record["seek_last"]) for record in found] == [2, 5, 8, 11, 19]


def test_frames_after_the_last_clip_are_not_stored(coded, tmp_path):
    (tmp_path / "list.csv").write_text("video_path\ncoded.mp4\n")
    (tmp_path / "coded.mp4").symlink_to(coded / "coded.mp4")
    (tmp_path / "coded.csv").write_text("start,end,text\n0,2,a\n1.5,6.9,b\n")
    for seconds, lengths, last in (("0", [4 * 5 + 8], [4]), ("3", [18, 13], [2, 4]), ("5", [28], [4])):
        prepare(tmp_path, tmp_path / seconds, "--segment_seconds", seconds)
        found = [record for record, _, _ in read_all(tmp_path / seconds)]
        assert [len(record["frames"]) for record in found] == lengths
        assert [int(record["seek_last"]) for record in found] == last


def test_clips_shorter_than_a_second(coded, tmp_path):
    prepare(coded, tmp_path, "--segment_seconds", "2", "--clip_seconds", "0.6")
    for record, _, _ in read_all(tmp_path):
        first = tf.io.decode_jpeg(record["frames"][0]).numpy() if len(record["frames"]) else None
        if record["start"] < SECONDS:
            assert frame_numbers(first[None]) == [record["start"] * 25 + 2]
        else:
            assert first is None


def test_weights_add_up_to_the_captions(segments, whole):
    for directory in (segments, whole):
        found = read_all(directory)
        assert {group for _, _, group in found} == {0}
        np.testing.assert_allclose(sum(weight for _, weight, _ in found), len(TIMES), rtol=1e-12)
    # By hand, seconds 0 to 2: captions 0 (0 to 7) 3/8, 1 (0) 1, 2 (0 to 4) 3/5, and none of 3 (3).
    np.testing.assert_allclose(read_all(segments)[0][1], 3 / 8 + 1 + 3 / 5, rtol=1e-12)


def test_records_hold_the_neighbours(segments):
    for record, _, _ in read_all(segments):
        owned = [
            number
            for number, (first, last) in enumerate(seek_ranges())
            if first <= record["seek_last"] and last >= record["seek_first"]
        ]
        first = max(0, owned[0] - 4)
        last = min(len(TIMES) - 1, owned[-1] + 4)
        assert record["caption_first"] == first
        assert record["caption_total"] == len(TIMES)
        assert [text.decode() for text in record["caption_text"]] == TEXTS[first : last + 1]


def test_candidates_are_those_of_the_whole_file(segments):
    """The same seed draws the same caption whatever K: K = 1 shows which one it was."""
    start, end = zip(*TIMES, strict=True)
    seen = collections.Counter()
    for record, _, _ in read_all(segments):
        for seed in range(60):
            for count in range(1, 6):
                clips = dataclasses.replace(CLIPS, num_candidates=count)
                ids = milnce.draw_clip(clips, VOCABULARY, record, np.random.default_rng(seed))[0]
                assert ids.shape == (count, 4)
                if count == 1:
                    caption = int(ids[0, 0]) - 2
                    seen[caption] += 1
                bag = captions.candidates(start, end, caption, count)
                assert ids.tolist() == [[number + 2, 1, 0, 0] for number in bag]
    assert set(seen) == set(range(len(TIMES)))


@pytest.mark.parametrize("kind", ["segments", "whole"])
def test_draws_follow_the_reference(kind, request):
    """Caption uniform, then seek second uniform in its range; u, w uniform, every second clip mirrored."""
    ranges = seek_ranges()
    chances = {
        (caption, seek): 1 / len(ranges) / (last - first + 1)
        for caption, (first, last) in enumerate(ranges)
        for seek in range(first, last + 1)
    }
    assert len(chances) > 25
    found = read_all(request.getfixturevalue(kind))
    weights = np.array([weight for _, weight, _ in found])
    rng = np.random.default_rng(0)
    draws = 8000
    counts = collections.Counter()
    crops, flips = [], 0
    for number in rng.choice(len(found), draws, p=weights / weights.sum()):
        record = found[number][0]
        ids, first, u, w, flip = milnce.draw_clip(CLIPS, VOCABULARY, record, rng)
        assert first % 5 == 0
        counts[int(ids[0, 0]) - 2, int(record["start"]) + first // 5] += 1
        crops.append((u, w))
        flips += flip
    assert set(counts) == set(chances)
    statistic = sum((counts[key] - draws * chance) ** 2 / (draws * chance) for key, chance in chances.items())
    freedom = len(chances) - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)
    crops = np.array(crops)
    assert crops.min() >= 0
    assert crops.max() < 1
    cells, _, _ = np.histogram2d(*crops.T, bins=4, range=[[0, 1], [0, 1]])
    assert ((cells - draws / 16) ** 2 / (draws / 16)).sum() < 15 + 4 * np.sqrt(30)
    assert abs(flips - draws / 2) < 4 * np.sqrt(draws / 4)


def test_centre_crops_and_no_flips(whole):
    record = read_all(whole)[0][0]
    clips = dataclasses.replace(CLIPS, center_crop=True, random_flip=False)
    rng = np.random.default_rng(0)
    assert {milnce.draw_clip(clips, VOCABULARY, record, rng)[2:] for _ in range(200)} == {(0.5, 0.5, False)}


def test_batches_fit_together(segments):
    """Frames and text of an example belong together, through the whole pipeline."""
    made = train(segments, batch_size=1)
    assert made.epoch_examples() == 1
    seen, flips = set(), []
    for batch in itertools.islice(made, 150):
        assert (batch["video"].shape, batch["video"].dtype) == ((1, 8, 48, 48, 3), np.uint8)
        assert (batch["text"].shape, batch["text"].dtype) == ((1, 1, 4), np.int32)
        assert (batch["flip"].shape, batch["flip"].dtype) == ((1,), np.bool_)
        first, last = seek_ranges()[batch["text"][0, 0, 0] - 2]
        shown = frame_numbers(batch["video"][0])
        seek = next((seek for seek in range(first, last + 1) if (shown == expected_frames(seek)).all()), None)
        assert seek is not None
        seen.add(seek)
        flips.append(bool(batch["flip"][0]))
    assert any(seek >= SECONDS for seek in seen)  # all black
    assert SECONDS - 1 in seen  # black at the end
    assert 45 < sum(flips) < 105


@pytest.fixture(scope="module")
def packaged(clips_folder, tmp_path_factory):
    """The packaged clips; an epoch visits every segment."""
    output = tmp_path_factory.mktemp("packaged")
    inputs = ["--list", clips_folder / "videos.csv", "--videos", clips_folder, "--captions", clips_folder / "captions"]
    sizes = "--num_shards 2 --short_side 80 --smallest_side 64 --segment_seconds 3 --epoch segments"
    sizes += " --clip_seconds 1.6 --min_time 2 --min_seconds 1.6"
    preparation.main(["howto100m", *map(str, inputs), "--output", str(output), *sizes.split()])
    return output


def test_packaged_clips_are_what_the_decoder_reads(packaged, clips_folder):
    found = read_all(packaged)
    assert [group for _, _, group in found] == [*range(13), *range(13)]
    for record, _, _ in found[::4]:
        path = clips_folder / f"{record['video_id'].decode()}.mp4"
        frames = np.stack([tf.io.decode_jpeg(frame).numpy() for frame in record["frames"][5:13]])
        read = decode.read_clip(
            path, start=int(record["start"]) + 1, num_frames=8, fps=5, filters=decode.short_side(80)
        )
        assert min(read.shape[1:3]) == 80
        assert read.shape[1:] == frames.shape[1:]
        assert np.abs(read[: len(frames)].astype(int) - frames).mean() < 6


@pytest.mark.parametrize("crop_only", [True, False])
def test_the_same_seed_gives_the_same_batches(packaged, crop_only):
    clips = dataclasses.replace(CLIPS, crop_only=crop_only, num_candidates=3)
    settings = {"clips": clips, "batch_size": 4, "streams": 2}
    one, two = (list(itertools.islice(train(packaged, **settings), 3)) for _ in range(2))
    parts = [list(itertools.islice(train(packaged, **settings, index=index, count=2), 3)) for index in range(2)]
    for number, batch in enumerate(one):
        assert batch["video"].shape == (4, 8, 48, 48, 3)
        for name, value in batch.items():
            np.testing.assert_array_equal(value, two[number][name])
            np.testing.assert_array_equal(value, np.concatenate([part[number][name] for part in parts]))
    other = next(iter(train(packaged, **settings, seed=1)))
    assert (other["video"] != one[0]["video"]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_time": 5.0}, "prepared with min_time = 2.0, the config asks for 5.0"),
        ({"num_frames": 16}, "prepared with clip_seconds = 1.6, the config asks for 3.2"),
        ({"fps": 10}, "prepared with fps = 5, the config asks for 10"),
        ({"num_candidates": 6}, "prepared with max_candidates = 5, the config asks for 6"),
        ({"size": 50}, "prepared with smallest_side = 48, the config asks for 50"),
    ],
)
def test_clips_that_the_records_do_not_allow(segments, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        train(segments, dataclasses.replace(CLIPS, **settings))
    assert "\n" not in str(caught.value)
    assert str(segments) in str(caught.value)


def test_scaled_clips_may_be_larger_than_the_frames(segments):
    clips = dataclasses.replace(CLIPS, size=70, crop_only=False)
    assert next(iter(train(segments, clips)))["video"].shape == (1, 8, 70, 70, 3)


def test_records_of_another_kind(segments):
    protocol = {"windows": 2, "num_frames": 4, "fps": 5, "size": 32, "max_words": 5}
    with pytest.raises(DataError, match="kind = 'milnce_training', the config asks for 'milnce_retrieval'"):
        milnce_evaluation.retrieval_pipeline(segments, "train", **protocol, vocabulary={}, shard=DataShard())


def test_captions_are_lower_cased_where_the_word_list_says_so(tmp_path):
    record = {"caption_start": np.zeros(1), "caption_end": np.ones(1), "caption_text": np.array([b"W0 SHARED w1"])}
    record |= {"seek_first": 0, "seek_last": 5, "start": 0, "caption_first": 0, "caption_total": 1}
    for lower_case, expected in ((False, [3, 0, 0, 0]), (True, [2, 1, 3, 0])):
        clips = dataclasses.replace(CLIPS, lower_case=lower_case)
        ids = milnce.draw_clip(clips, VOCABULARY, record, np.random.default_rng(0))[0]
        assert ids.tolist() == [expected]
    config = milnce_config.default_config()
    config.text.vocabulary = str(tmp_path / "words.npy")
    configs.describe(config)
    assert config.text.lower_case is False
    (tmp_path / "words.json").write_text('{"lower_case": true}')
    configs.describe(config)
    assert config.text.lower_case is True


def test_the_first_captions_are_read_without_frames(whole, segments):
    assert milnce.first_captions(whole) == TEXTS
    assert set(milnce.first_captions(segments)) == set(TEXTS)
    assert len(milnce.first_captions(segments, 2)) < len(milnce.first_captions(segments))

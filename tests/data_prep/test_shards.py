import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep import commands, shards
from data_prep.milnce import prepare as milnce
from vlm_jax.data import records
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce.data import TRAINING_FEATURES

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "data_prep" / "clips"
SIZES = "--short_side 80 --smallest_side 64 --segment_seconds 3 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6"
FEATURES = tfds.features.FeaturesDict({"number": np.int64})


def command(output, *arguments):
    inputs = ["--list", CLIPS / "videos.csv", "--videos", CLIPS, "--captions", CLIPS / "captions", "--output", output]
    return ["howto100m", *map(str, inputs), *SIZES.split(), "--num_shards", "5", *arguments]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The packaged clips in five shards, made by one process in one go."""
    output = tmp_path_factory.mktemp("undisturbed")
    milnce.main(command(output))
    return output


def test_a_killed_preparation_goes_on(undisturbed, tmp_path):
    arguments = [sys.executable, "-m", "data_prep.milnce", *command(tmp_path / "made", "--workers", "2")]
    running = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not list((tmp_path / "made").glob("*.tfrecord-*")):
        assert running.poll() is None
        time.sleep(0.002)
    running.kill()
    # Only the command itself is killed. Its workers notice: else they would keep the pipe open.
    running.communicate(timeout=30)
    assert running.returncode == -signal.SIGKILL
    finished = list((tmp_path / "made").glob("*.npy"))
    assert len(finished) < 5
    assert not (tmp_path / "made" / "protocol.json").exists()
    times = {path: path.stat().st_mtime_ns for path in finished}
    milnce.main(command(tmp_path / "made"))
    assert contents(tmp_path / "made") == contents(undisturbed)
    assert times == {path: path.stat().st_mtime_ns for path in finished}


def test_finished_shards_stay_and_missing_ones_are_made(undisturbed, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    for name, content in contents(undisturbed).items():
        # As if killed between a shard and its index, and in the middle of another.
        if name in ("howto100m-train.index-00003-of-00005.npy", "protocol.json", "skipped.csv", "features.json"):
            continue
        if name.endswith("-00001-of-00005") or "-00001-of-00005." in name:
            (made / "howto100m-train.tfrecord-00001-of-00005.0badcafe.tmp").write_bytes(content[:100])
            continue
        (made / name).write_bytes(content)
    before = {path.name: path.stat().st_mtime_ns for path in made.glob("*-0000[024]-of-*")}
    assert len(before) == 9
    milnce.main(command(made))
    assert contents(made) == contents(undisturbed)
    assert before == {path.name: path.stat().st_mtime_ns for path in made.glob("*-0000[024]-of-*")}


def test_one_shard_at_a_time(undisturbed, tmp_path, capsys):
    for index in (3, 0, 4, 1):
        milnce.main(command(tmp_path, "--shard_index", str(index)))
    assert "howto100m-train shards: 1/1" in capsys.readouterr().err
    with pytest.raises(DataError, match="not made yet") as caught:
        milnce.main(command(tmp_path, "--finalize"))
    assert str(caught.value) == f"{tmp_path}: 1 of the 5 shards of howto100m-train are not made yet: 2"
    assert not (tmp_path / "protocol.json").exists()
    milnce.main(command(tmp_path, "--shard_index", "2"))
    milnce.main(command(tmp_path, "--finalize"))
    assert contents(tmp_path) == contents(undisturbed)


def test_tfds_reads_the_shards(undisturbed):
    builder = tfds.builder_from_directory(undisturbed)
    split = builder.info.splits["train"]
    assert (split.num_shards, split.num_examples) == (5, 26)
    assert set(builder.info.features) == set(TRAINING_FEATURES)
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False))))
    assert example["video_id"].decode() == "bunny"
    assert example["frames"].shape == (18, 80, 142, 3)
    assert (example["start"], example["seek_first"], example["seek_last"]) == (0, 0, 2)
    assert (example["height"], example["width"]) == (80, 142)
    assert (example["caption_first"], example["caption_total"]) == (0, 8)
    assert example["caption_start"].tolist() == [0, 2, 10, 11.8, 15.7, 20.8, 23, 25.4]
    assert example["caption_end"].tolist() == [12, 11.8, 21, 15.7, 20.4, 23, 25, 30]
    assert example["caption_text"][1].decode() == "a green hill with trees under a pink sky"


@pytest.mark.parametrize(
    ("arguments", "key", "found", "wanted"),
    [
        (["--quality", "80"], "quality", 90, 80),
        (["--num_shards", "4"], "num_shards", 5, 4),
    ],
)
def test_shards_of_other_options_are_not_mixed(undisturbed, arguments, key, found, wanted):
    before = contents(undisturbed)
    with pytest.raises(DataError, match=f"begun with {key} = {found}, now it is {wanted};") as caught:
        milnce.main(command(undisturbed, *arguments))
    assert str(undisturbed / "howto100m-train.begun.json") in str(caught.value)
    assert contents(undisturbed) == before


def numbers(items):
    """One record for each number, a skip for each name."""
    for group, item in enumerate(items):
        yield Skip(item, "no number") if isinstance(item, str) else Record({"number": item}, group)


def job(directory, items, make=numbers):
    return shards.Job(directory, "numbers", "train", FEATURES, {"kind": "numbers"}, items, make)


def options(num_shards, workers=1, shard_index=None, finalize=False, shard_step=0):
    return Namespace(
        num_shards=num_shards,
        workers=workers,
        shard_index=shard_index,
        finalize=finalize,
        shard_step=shard_step,
        beam_pipeline_options=None,
    )


def read(directory, count):
    paths = [records.shard_path(directory, "numbers", "train", index, count) for index in range(count)]
    return [len(records.read_index(path)) for path in paths]


def test_other_lists_are_not_mixed(tmp_path):
    shards.run(job(tmp_path, [1, 2, 3]), options(2))
    with pytest.raises(DataError, match="begun with items_sha256"):
        shards.run(job(tmp_path, [1, 2, 4]), options(2, shard_index=0))
    with pytest.raises(DataError, match="begun with items = 3, now it is 4"):
        shards.run(job(tmp_path, [1, 2, 3, 4]), options(2, finalize=True))


@pytest.mark.parametrize("content", ["", "[1]", "3", "{", "\x00"])
def test_a_damaged_beginning_is_one_line(tmp_path, content):
    (tmp_path / "numbers-train.begun.json").write_text(content)
    with pytest.raises(DataError, match=r"numbers-train[.]begun[.]json: damaged") as caught:
        shards.run(job(tmp_path, [1]), options(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["youcook2", "msrvtt", "segments", "hmdb51"])
def test_missing_videos_of_an_evaluation_set_are_an_error_before_anything_is_written(tmp_path, name):
    arguments = [name, "--csv", tmp_path / "list.csv", "--videos", tmp_path / "absent", "--output", tmp_path / "made"]
    with pytest.raises(DataError, match=f"^--videos: {tmp_path}/absent: no such folder$"):
        milnce.main([str(word) for word in arguments])
    assert not (tmp_path / "made").exists()


def test_every_item_is_in_one_shard(tmp_path, capsys):
    shards.run(job(tmp_path / "a", [*range(11), "x", "y"]), options(4))
    assert read(tmp_path / "a", 4) == [3, 3, 3, 2]
    output = capsys.readouterr().out
    assert "13 items, 11 kept as 11 records" in output
    assert "2 skipped" in output
    assert "2 x no number" in output
    assert str(tmp_path / "a" / "skipped.csv") in output


def test_a_shard_is_made_again_when_a_missing_file_appears(tmp_path, capsys):
    videos, made = tmp_path / "videos", tmp_path / "made"
    videos.mkdir()
    for path in (CLIPS / "bunny.mp4", CLIPS / "chaplin.mp4"):
        (videos / path.name).symlink_to(path)
    arguments = command(made)
    arguments[arguments.index("--videos") + 1] = str(videos)
    milnce.main(arguments)
    before = {path.name: path.stat().st_mtime_ns for path in made.glob("*-of-*")}
    assert "2 kept" in capsys.readouterr().out
    (videos / "drumming.mp4").symlink_to(CLIPS / "drumming.mp4")
    milnce.main(arguments)
    output = capsys.readouterr().out
    assert "1 finished shards are made again" in output
    assert "3 kept" in output
    after = {path.name: path.stat().st_mtime_ns for path in made.glob("*-of-*")}
    changed = {name.partition("-of-")[0][-5:] for name, time in before.items() if after[name] != time}
    assert len(changed) == 1
    milnce.main(arguments)
    assert "made again" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["videos", "captions"])
def test_a_missing_folder_is_an_error_before_anything_is_written(tmp_path, name):
    arguments = command(tmp_path / "made")
    arguments[arguments.index(f"--{name}") + 1] = str(tmp_path / "absent")
    with pytest.raises(DataError, match=f"^--{name}: {tmp_path}/absent: no such folder$"):
        milnce.main(arguments)
    assert not (tmp_path / "made").exists()


def test_there_are_no_more_shards_than_items(tmp_path):
    for index in range(8):
        shards.run(job(tmp_path, [1, 2, 3]), options(8, shard_index=index))
    shards.run(job(tmp_path, [1, 2, 3]), options(8, finalize=True))
    assert read(tmp_path, 3) == [1, 1, 1]
    assert records.read_protocol(tmp_path)["splits"]["train"]["shards"] == 3


def test_every_nth_shard(tmp_path):
    shards.run(job(tmp_path, [*range(7)]), options(7, shard_index=1, shard_step=3))
    assert [path.name[-19:-13] for path in sorted(tmp_path.glob("*.npy"))] == ["-00001", "-00004"]
    shards.run(job(tmp_path, [*range(7)]), options(7, shard_index=2, shard_step=3))
    with pytest.raises(DataError, match=r"3 of the 7 shards of numbers-train are not made yet: 0,3,6$"):
        shards.run(job(tmp_path, [*range(7)]), options(7, finalize=True, shard_step=3))
    shards.run(job(tmp_path, [*range(7)]), options(7, shard_index=0, shard_step=3, workers=1))
    shards.run(job(tmp_path, [*range(7)]), options(7, finalize=True))
    assert read(tmp_path, 7) == [1] * 7


@pytest.mark.parametrize(
    ("items", "settings", "message"),
    [
        ([], {"num_shards": 2}, "0 items for 2 shards; expected at least one of each"),
        ([1], {"num_shards": 0}, "1 items for 0 shards"),
        ([1], {"num_shards": 2, "shard_index": 2}, "--shard_index: 2 is not one of 0 to 1"),
        ([1], {"num_shards": 2, "shard_index": -1}, "--shard_index: -1 is not one of 0 to 1"),
        ([1, 2], {"num_shards": 2, "shard_step": 2}, "--shard_step: .* found 2 and None"),
        (
            [1, 2, 3],
            {"num_shards": 3, "shard_index": 2, "shard_step": 2},
            "expected more than --shard_index, found 2 and 2",
        ),
        (["x"], {"num_shards": 1}, "holds no record"),
    ],
)
def test_jobs_that_cannot_be_done(tmp_path, items, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        shards.run(job(tmp_path, items), options(**settings))
    assert "\n" not in str(caught.value)


class Deadly:
    """Ends the worker that receives it, as the system does when memory runs out."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_killed_worker_is_an_error(tmp_path):
    with pytest.raises(DataError, match="a worker process was killed") as caught:
        shards.run(job(tmp_path, [1, 2], Deadly()), options(2, workers=2))
    assert "fewer than --workers 2" in str(caught.value)
    assert not list(tmp_path.glob("*.tfrecord-*"))


def test_an_expected_error_is_one_line(capsys):
    def fail(error):
        raise error

    for error in (DataError("a.csv: no column 'b'"), FileNotFoundError(2, "No such file", "a.csv")):
        with pytest.raises(SystemExit) as caught:
            commands.main(lambda error=error: fail(error))
        assert caught.value.code == f"error: {error}"
    with pytest.raises(ZeroDivisionError):
        commands.main(lambda: fail(ZeroDivisionError()))

import csv
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from video_files import write_audio

from data_prep import tables
from data_prep.milnce import prepare as milnce
from vlm_jax.data import records
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce.data import TRAINING_FEATURES
from vlm_jax.systems.milnce.evaluation_data import RETRIEVAL_FEATURES
from vlm_jax.text import word_list
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

CAPTIONS = "start,end,text\n0,2,a\n1,3,b\n"


def grey(count, height=48, width=64):
    """Frames that are told apart by their brightness."""
    levels = (20 + 4 * (np.arange(count) % 54)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def brightness(jpegs):
    return [round((float(tf.io.decode_jpeg(jpeg).numpy().mean()) - 20) / 4) for jpeg in jpegs]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def howto100m(folder, output, *arguments):
    inputs = ["--list", folder / "list.csv", "--videos", folder, "--captions", folder, "--output", output]
    sizes = "--short_side 48 --smallest_side 48 --segment_seconds 0 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6"
    milnce.main(["howto100m", *map(str, inputs), *sizes.split(), *arguments])


def read(directory, features=TRAINING_FEATURES, split="train"):
    """All records, images not decoded."""
    made = Split(directory, split)
    found = []
    for shard, path in enumerate(made.paths):
        for offset in made.index(shard)["offset"]:
            serialised = records.read_record(tf.constant(str(path)), tf.constant(offset))
            record = features.deserialize_example(serialised, decoders={"frames": tfds.decode.SkipDecoding()})
            found.append({name: value.numpy() for name, value in record.items()})
    return found


def skipped(directory):
    with open(directory / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["item"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Good and bad videos and caption files."""
    folder = tmp_path_factory.mktemp("hostile")
    frames = grey(50)
    for name in ("good", "no_captions", "only_header", "bad_time", "negative", "huge", "endless", "no_column", "latin"):
        write_video(folder / f"{name}.mp4", frames, 12)
    for name in ("short_row", "empty_cell", "unicode", "sub.folder"):
        write_video(folder / f"{name}.mp4", frames, 12)
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut_header.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(folder / "long.mkv", grey(120), 12)
    whole = (folder / "long.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.mp4").write_bytes(b"")
    write_audio(folder / "audio.mp4")
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    write_video(folder / "small.mp4", grey(50, 32, 80), 12)
    write_video(folder / "short.mp4", grey(15), 12)
    write_video(folder / "turned.mp4", grey(50, 48, 80), 12, rotation=90)
    write_video(folder / "odd.mp4", grey(50, 65, 97), 12, lossless=True)
    write_video(folder / "jump.mkv", grey(3), 5, times=[Fraction(0), Fraction(1), Fraction(300_000)])
    (folder / "folder.mp4").mkdir()
    captions = {
        "only_header": "start,end,text\n",
        "bad_time": "start,end,text\n0,2,a\n1,soon,b\n",
        "negative": "start,end,text\n-1,2,a\n",
        "huge": "start,end,text\n0,1e300,a\n",
        "endless": "start,end,text\n0,nan,a\n",
        "no_column": "start,end,words\n0,2,a\n",
        "short_row": "start,end,text\n0,2,a\n1,2\n",
        "empty_cell": "start,end,text\n0,2,\n1,3,NA\n2,4,not NA\n",
        "unicode": 'index,start,end,text\n0,0,2,"naïve, 日本語"\n1,1,3,"two\nlines and\u2028a separator"\n',
        "cut": "start,end,text\n0,2,a\n5,9,b\n",
    }
    everything = ["missing.mp4", *sorted(path.name for path in folder.iterdir() if path.name != "long.mkv")]
    for name in everything:
        stem = name.split(".")[0]
        if stem != "no_captions":
            (folder / f"{stem}.csv").write_text(captions.get(stem, CAPTIONS), encoding="utf-8")
    (folder / "latin.csv").write_bytes("start,end,text\n0,2,naïve\n".encode("latin-1"))
    write_rows(folder / "list.csv", [["video_path"], *([name] for name in [*everything, "n" * 300])])
    return folder


@pytest.fixture(scope="module")
def survivors(hostile, tmp_path_factory):
    output = tmp_path_factory.mktemp("survivors")
    howto100m(hostile, output, "--num_shards", "3")
    return output


def test_what_is_bad_is_skipped_with_its_reason(survivors, hostile):
    found = skipped(survivors)
    assert {name: row["reason"] for name, row in found.items()} == {
        "missing.mp4": "missing",
        "n" * 300: "no captions",
        "jump.mkv": "time jump",
        "folder.mp4": "missing",
        "cut_header.mp4": "unreadable",
        "cut.mkv": "truncated",
        "zero.mp4": "empty",
        "audio.mp4": "no video stream",
        "text.mp4": "unreadable",
        "small.mp4": "too small",
        "short.mp4": "too short",
        "no_captions.mp4": "no captions",
        "only_header.mp4": "no captions",
        "bad_time.mp4": "bad captions",
        "negative.mp4": "bad captions",
        "huge.mp4": "bad captions",
        "endless.mp4": "bad captions",
        "no_column.mp4": "bad captions",
        "short_row.mp4": "bad captions",
        "latin.mp4": "bad captions",
    }
    details = {
        "small.mp4": f"{hostile / 'small.mp4'}: 80x32, needs 48",
        "short.mp4": f"{hostile / 'short.mp4'}: 1.25 s, needs 1.6 s",
        "no_captions.mp4": f"{hostile / 'no_captions.csv'}: no such file",
        "only_header.mp4": f"{hostile / 'only_header.csv'}: no rows",
        "bad_time.mp4": f"{hostile / 'bad_time.csv'}: line 3, column 'end': expected seconds, found 'soon'",
        "negative.mp4": f"{hostile / 'negative.csv'}: line 2, column 'start': expected seconds, found '-1'",
        "no_column.mp4": f"{hostile / 'no_column.csv'}: no column 'text'; it has start, end, words",
        "short_row.mp4": f"{hostile / 'short_row.csv'}: line 3 has fewer cells than the header",
    }
    for name, detail in details.items():
        assert found[name]["detail"] == detail
    assert found["latin.mp4"]["detail"].startswith(f"{hostile / 'latin.csv'}: not a UTF-8 csv file")


def test_the_others_are_kept(survivors):
    found = {record["video_id"].decode(): record for record in read(survivors)}
    assert set(found) == {"empty_cell", "good", "odd", "sub", "turned", "unicode"}
    assert [text.decode() for text in found["empty_cell"]["caption_text"]] == ["nan", "nan", "not NA"]
    assert [text.decode() for text in found["unicode"]["caption_text"]] == [
        "naïve, 日本語",
        "two\nlines and\u2028a separator",
    ]
    assert word_list.encode("naïve, 日本語", {"naïve": 1, "日本語": 2}, 2).tolist() == [1, 2]
    # Stored as shown: upright.
    assert (found["turned"]["height"], found["turned"]["width"]) == (80, 48)
    assert tf.io.decode_jpeg(found["turned"]["frames"][0]).shape == (80, 48, 3)
    # Odd sides become even ones.
    assert (found["odd"]["height"], found["odd"]["width"]) == (48, 72)


def test_what_is_skipped_is_counted(hostile, tmp_path, capsys):
    write_rows(tmp_path / "list.csv", [["video_path"], ["good.mp4"], ["zero.mp4"], ["huge.mp4"], ["latin.mp4"]])
    for path in hostile.iterdir():
        if path.name != "list.csv":
            (tmp_path / path.name).symlink_to(path)
    howto100m(tmp_path, tmp_path / "made")
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith(f"{tmp_path / 'made'}: 4 items, 1 kept as 1 records (")
    assert output[0].endswith("3 skipped")
    assert output[1:3] == ["  2 x bad captions", "  1 x empty"]
    assert output[3] == f"  each with its reason in {tmp_path / 'made' / 'skipped.csv'}"


def test_small_videos_can_be_enlarged(hostile, tmp_path):
    howto100m(hostile, tmp_path, "--enlarge")
    found = {record["video_id"].decode(): record for record in read(tmp_path)}
    assert (found["small"]["height"], found["small"]["width"]) == (48, 120)
    assert (found["good"]["height"], found["good"]["width"]) == (48, 64)
    assert "small.mp4" not in skipped(tmp_path)


def test_what_the_captions_do_not_reach_may_be_cut(hostile, tmp_path):
    """Half of the file is there: some five of its ten seconds."""
    (tmp_path / "early.mkv").symlink_to(hostile / "cut.mkv")
    (tmp_path / "early.csv").write_text("start,end,text\n0,2,a\n")
    write_rows(tmp_path / "list.csv", [["video_path"], ["early.mkv"]])
    howto100m(tmp_path, tmp_path / "made")
    (record,) = read(tmp_path / "made")
    assert len(record["frames"]) == 8


def test_variable_frame_rate(tmp_path):
    """Frame i of a record is what the video shows at i / 5 s, to the nearest half of a step."""
    steps = [Fraction(1, 24)] * 30 + [Fraction(1, 10)] * 20 + [Fraction(1, 30)] * 40
    times = [sum(steps[:number], Fraction(0)) for number in range(len(steps))]
    write_video(tmp_path / "variable.mp4", grey(len(steps)), 24, times=times, lossless=True)
    (tmp_path / "variable.csv").write_text("start,end,text\n0,5,a\n")
    write_rows(tmp_path / "list.csv", [["video_path"], ["variable.mp4"]])
    howto100m(tmp_path, tmp_path / "made")
    (record,) = read(tmp_path / "made")
    shown = [max(n for n, time in enumerate(times) if int(time * 5 + Fraction(1, 2)) <= k) for k in range(23)]
    assert brightness(record["frames"]) == [number % 54 for number in shown]
    for seek in range(4):
        frames = decode.read_clip(tmp_path / "variable.mp4", start=seek, num_frames=8, fps=5)
        clip = [int(frame.mean()) for frame in frames if frame.any()]
        stored = [20 + 4 * number for number in brightness(record["frames"][5 * seek : 5 * seek + 8])]
        np.testing.assert_allclose(clip, stored, atol=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--short_side", "49"], "expected even numbers"),
        (["--smallest_side", "50"], r"--smallest_side, --short_side: expected even numbers, .* found \(50, 48\)"),
        (["--fps", "0"], "--fps: expected more than 0, found 0"),
        (["--clip_seconds", "-1"], "--clip_seconds: expected more than 0, found -1"),
        (["--max_candidates", "0"], "--max_candidates: expected more than 0"),
    ],
)
def test_settings_that_make_no_sense(hostile, tmp_path, arguments, message):
    with pytest.raises(DataError, match=message) as caught:
        howto100m(hostile, tmp_path, *arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_list_is_one_line(root, tmp_path):
    """As a command: exit status 1, and nothing but the line."""
    write_rows(tmp_path / "list.csv", [["path"], ["a.mp4"]])
    command = [sys.executable, "-m", "data_prep.milnce", "howto100m", "--output", str(tmp_path / "made")]
    inputs = ["--list", str(tmp_path / "list.csv"), "--videos", str(tmp_path), "--captions", str(tmp_path)]
    done = subprocess.run([*command, *inputs], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path / 'list.csv'}: no column 'video_path'; it has path"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "made").exists()


YOUCOOK2 = ["end", "start", "task", "text", "video_id"]


@pytest.mark.parametrize(
    ("command", "rows", "message"),
    [
        ("howto100m", None, r"list\.csv: no such file"),
        ("howto100m", [["video_path"]], "0 items for 128 shards"),
        ("vocabulary", None, r"list\.csv: no such file"),
        ("youcook2", [YOUCOOK2[:-1]], r"list\.csv: no column 'video_id'; it has end, start, task, text"),
        ("youcook2", [YOUCOOK2, ["soon", "1", "101", "a", "b"]], r"list\.csv: line 2, column 'end': .* found 'soon'"),
        ("youcook2", None, r"list\.csv: no such file"),
        ("msrvtt", [["key", "vid_key", "sentence"]], "no column 'video_id'"),
        ("segments", [["video_path", "start", "text"]], "no column 'end'"),
        ("segments", [[]], "no column 'video_path'; it has none"),
    ],
)
def test_bad_lists(tmp_path, command, rows, message):
    if rows is not None:
        write_rows(tmp_path / "list.csv", rows)
    inputs = ["--list" if command in ("howto100m", "vocabulary") else "--csv", str(tmp_path / "list.csv")]
    folders = {"howto100m": ("videos", "captions"), "vocabulary": ("captions",)}.get(command, ("videos",))
    inputs += [word for name in folders for word in (f"--{name}", str(tmp_path))]
    with pytest.raises(DataError, match=message) as caught:
        milnce.main([command, *inputs, "--output", str(tmp_path / "made")])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("made/*.tfrecord*"))


def test_read_rows_takes_what_csv_files_hold(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('﻿b,a\r\n"1, 2","x\r\ny"\r\n\r\n3,é\u2028\x85\r\n'.encode())
    assert tables.read_rows(path, ("a", "b")) == [{"b": "1, 2", "a": "x\ny"}, {"b": "3", "a": "é\u2028\x85"}]


def retrieval(command, folder, output, *arguments):
    inputs = ["--csv", folder / "list.csv", "--videos", folder, "--output", output]
    sizes = "--num_shards 2 --windows 3 --num_frames 4 --size 16".split()
    milnce.main([command, *map(str, inputs), *sizes, *arguments])


def test_youcook2(tmp_path, capsys):
    for name, ending, count in (("one", "mp4", 120), ("two", "webm", 60), ("two", "mkv", 120)):
        path = tmp_path / "validation" / "101" / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, grey(count), 12)
    rows = [["9", "1", "101", "stir it", "one"], ["3", "2", "101", "", "two"], ["3", "2", "102", "gone", "three"]]
    write_rows(tmp_path / "list.csv", [YOUCOOK2, *rows])
    retrieval("youcook2", tmp_path, tmp_path / "made")
    one, two = read(tmp_path / "made", RETRIEVAL_FEATURES, "validation")
    assert (one["video_id"], one["text"].decode(), one["start"], one["end"]) == (b"one", "stir it", 1, 9)
    assert two["text"] == b"nan"
    assert one["clip_starts"].tolist() == pytest.approx([1.0, 4.4, 7.8], rel=1e-15)
    assert two["clip_starts"].tolist() == [2.0] * 3
    assert len(one["frames"]) == len(two["frames"]) == 12
    # .mkv is tried before .webm.
    read_clip = decode.read_clip(
        tmp_path / "validation" / "101" / "two.mkv", start=2, num_frames=4, fps=5, filters=decode.square_crop(16)
    )
    np.testing.assert_array_equal([tf.io.decode_png(frame).numpy() for frame in two["frames"][4:8]], read_clip)
    assert "1 x missing" in capsys.readouterr().out
    assert list(skipped(tmp_path / "made")) == ["three 2.0-3.0"]


def test_a_cut_video_is_padded_with_black_and_listed(tmp_path, capsys):
    """The reference reads what is there; `--strict` leaves such videos out."""
    write_video(tmp_path / "whole.mkv", grey(120), 12)
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    rows = [["video_path", "start", "end", "text"], ["whole.mkv", 0, 10, "all"], ["cut.mkv", 0, 10, "half"]]
    write_rows(tmp_path / "list.csv", rows)
    retrieval("segments", tmp_path, tmp_path / "made")
    whole, cut = read(tmp_path / "made", RETRIEVAL_FEATURES, "test")
    shown = [[tf.io.decode_png(frame).numpy() for frame in item["frames"]] for item in (whole, cut)]
    np.testing.assert_array_equal(shown[0][:4], shown[1][:4])
    assert np.min(shown[0]) > 0
    assert not np.any(shown[1][8:])
    (listed,) = skipped(tmp_path / "made").values()
    assert (listed["item"], listed["kept"]) == ("cut.mkv 0.0-10.0", "yes")
    assert listed["reason"] == "truncated, black where frames are missing"
    output = capsys.readouterr().out
    assert "2 items, 2 kept as 2 records" in output
    assert "1 kept, but truncated, black where frames are missing" in output

    retrieval("segments", tmp_path, tmp_path / "strict", "--strict")
    assert len(read(tmp_path / "strict", RETRIEVAL_FEATURES, "test")) == 1
    (listed,) = skipped(tmp_path / "strict").values()
    assert (listed["reason"], listed["kept"]) == ("truncated", "no")


def test_stretches_that_cannot_be_are_no_queries(tmp_path):
    write_video(tmp_path / "a.mp4", grey(60), 12)  # five seconds
    times = {"fine": (1, 9), "backwards": (3, 2), "nothing": (2, 2), "late": (5.5, 6)}
    rows = [["a.mp4", *pair, name] for name, pair in times.items()]
    write_rows(tmp_path / "list.csv", [["video_path", "start", "end", "text"], *rows])
    retrieval("segments", tmp_path, tmp_path / "made")
    assert [item["text"] for item in read(tmp_path / "made", RETRIEVAL_FEATURES, "test")] == [b"fine"]
    reasons = {item: row["reason"] for item, row in skipped(tmp_path / "made").items()}
    assert reasons == {
        "a.mp4 3.0-2.0": "end before start",
        "a.mp4 2.0-2.0": "zero length",
        "a.mp4 5.5-6.0": "beyond the video",
    }


def test_msrvtt(tmp_path):
    write_video(tmp_path / "video7020.mp4", grey(60), 12)
    (tmp_path / "video1.mp4").write_text("no video")
    rows = [["ret0", "msr1", "video1", "unreadable"], ["ret1", "msr7020", "video7020", "a cat"]]
    write_rows(tmp_path / "list.csv", [["key", "vid_key", "video_id", "sentence"], *rows])
    retrieval("msrvtt", tmp_path, tmp_path / "made")
    (item,) = read(tmp_path / "made", RETRIEVAL_FEATURES, "test")
    assert (item["video_id"], item["text"], item["start"], item["end"]) == (b"video7020", b"a cat", 0, 5)
    np.testing.assert_allclose(item["clip_starts"], [0, 1.9, 3.8], rtol=1e-15)
    assert [row["reason"] for row in skipped(tmp_path / "made").values()] == ["unreadable"]


def test_vocabulary(hostile, tmp_path, capsys):
    inputs = ["--list", hostile / "list.csv", "--captions", hostile, "--output", tmp_path / "made" / "words"]
    milnce.main(["vocabulary", *map(str, inputs), "--rows", "14"])
    vocabulary = word_list.load(tmp_path / "made" / "words", 14)
    assert list(vocabulary)[:2] == ["a", "b"]
    assert {"nan", "naïve", "日本語", "not", "na", "separator"} <= set(vocabulary)
    assert word_list.lower_cases(tmp_path / "made" / "words")
    assert list(vocabulary)[-2:] == ["<unused 0>", "<unused 1>"]
    output = capsys.readouterr().out
    assert "11 words, for config.text.rows = 14" in output
    assert "they are 100.0 % of the" in output
    assert "9 caption files skipped, such as" in output


def test_a_vocabulary_that_keeps_case(hostile, tmp_path):
    inputs = ["--list", hostile / "list.csv", "--captions", hostile, "--output", tmp_path / "words.npy"]
    milnce.main(["vocabulary", *map(str, inputs), "--rows", "14", "--keep_case"])
    assert "NA" in word_list.load(tmp_path / "words.npy", 14)
    assert word_list.lower_cases(tmp_path / "words.npy") is False


def test_a_vocabulary_without_words(tmp_path):
    write_rows(tmp_path / "list.csv", [["video_path"], ["a.mp4"]])
    with pytest.raises(DataError, match="no words in the captions of") as caught:
        milnce.main(
            ["vocabulary", "--list", str(tmp_path / "list.csv"), "--captions", str(tmp_path), "--output", str(tmp_path)]
        )
    assert str(tmp_path / "list.csv") in str(caught.value)

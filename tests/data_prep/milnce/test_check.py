import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from video_files import write_audio

from data_prep.milnce import prepare as milnce
from vlm_jax.errors import DataError
from vlm_jax.video.write import write_video

SMALL = ["--smallest_side", "48", "--min_seconds", "1.6"]


def grey(count, height=48, width=64):
    levels = (20 + 4 * (np.arange(count) % 54)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def run(capsys, directory, *words):
    """Exit status and lines of `--check`."""
    try:
        milnce.main(["--check", str(directory), *words])
        status = 0
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().out.splitlines()


def by_reason(lines):
    """The examples below every headline, the headline up to its colon."""
    found, headline = {}, ""
    for line in lines[1:]:
        if line.startswith("  "):
            found[headline].append(line.strip())
        else:
            headline = line.split(":")[0]
            found[headline] = []
    return found


CAPTIONS = {
    "no_rows": "",
    "bad_time": "0,2,a\n1,soon,b\n",
    "backwards": "0,2,a\n3,1,b\n",
    "late": "0,2,a\n4.5,5,b\n7,8,c\n",
    "long": "0,2,a\n3,9,b\n",
    "order": "2,3,a\n0,1,b\n",
    "silent": "0,2,a\n1,3,\n2,4,NA\n",
    "fine": "0,2,a\n3,4.9,b\n",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """videos.csv, videos/ and captions/ with all that can be wrong. Videos last 50/12 = 4.17 seconds."""
    folder = tmp_path_factory.mktemp("hostile")
    videos = folder / "videos"
    videos.mkdir()
    write_video(videos / "fine.mp4", grey(50), 12)
    for name in [*CAPTIONS, "no_file", "latin", "small", "short", "audio", "text", "empty", "cut", "two.a", "two.b"]:
        (folder / "captions").mkdir(exist_ok=True)
        if name != "no_file":
            rows = CAPTIONS.get(name, CAPTIONS["fine"])
            (folder / "captions" / f"{name.split('.')[0]}.csv").write_text("start,end,text\n" + rows)
        if name != "fine":
            (videos / f"{name}.mp4").symlink_to(videos / "fine.mp4")
    (folder / "captions" / "latin.csv").write_bytes("start,end,text\n0,2,naïve\n".encode("latin-1"))
    (folder / "captions" / "nobody.csv").write_text("start,end,text\n")
    for name in ("small", "short", "audio", "text", "empty", "cut"):
        (videos / f"{name}.mp4").unlink()
    write_video(videos / "small.mp4", grey(50, 32, 80), 12)
    write_video(videos / "short.mp4", grey(15), 12)
    write_audio(videos / "audio.mp4")
    (videos / "text.mp4").write_text("no film\n" * 100)
    (videos / "empty.mp4").write_bytes(b"")
    write_video(videos / "whole.mkv", grey(120), 12)
    (videos / "cut.mp4").write_bytes((videos / "whole.mkv").read_bytes()[:2500])
    (videos / "whole.mkv").unlink()
    names = sorted(path.name for path in videos.iterdir())
    write_rows(folder / "videos.csv", [["video_path"], *([name] for name in names), ["gone.mp4"], ["fine.mp4"]])
    (folder / "captions" / "gone.csv").write_text("start,end,text\n0,2,a\n")
    return folder


def test_a_hostile_folder(hostile, capsys):
    status, lines = run(capsys, hostile, *SMALL)
    assert status == 1
    captions, videos = hostile / "captions", hostile / "videos"
    found = by_reason(lines)
    assert len(found) == 18
    assert found == {
        "1 video is listed twice": [f"{hostile / 'videos.csv'}: fine.mp4"],
        "1 caption file belongs to several videos": [f"{captions / 'two.csv'}: two.a.mp4, two.b.mp4"],
        "1 caption file belongs to no video of the list": [str(captions / "nobody.csv")],
        "1 video is missing": [f"{videos / 'gone.mp4'}: missing"],
        "1 video has no bytes": [f"{videos / 'empty.mp4'}: empty"],
        "1 video cannot be decoded": [f"{videos / 'text.mp4'}: unreadable (Invalid data found when processing input)"],
        "1 file has no video in it": [f"{videos / 'audio.mp4'}: no video stream"],
        "1 video is cut off": found["1 video is cut off"],
        "1 video is too small": [f"{videos / 'small.mp4'}: 80x32, needs 48 on each side"],
        "1 video is shorter than a clip": [f"{videos / 'short.mp4'}: 1.25 s, needs 1.6 s"],
        "2 videos have no captions": [
            f"{captions / 'no_file.csv'}: no such file",
            f"{captions / 'no_rows.csv'}: no rows",
        ],
        "1 caption file cannot be read": [
            f"{captions / 'bad_time.csv'}: line 3, column 'end': expected seconds, found 'soon'"
        ],
        "1 file is not UTF-8": found["1 file is not UTF-8"],
        "1 caption file has rows that end before they begin": [f"{captions / 'backwards.csv'}: row 2 (3 to 1 s)"],
        "2 caption files have rows that begin after the video's end": [
            f"{captions / 'late.csv'}: row 2 (4.5 to 5 s) and 1 more; late.mp4 ends at 4.17 s",
            f"{captions / 'short.csv'}: row 2 (3 to 4.9 s); short.mp4 ends at 1.25 s",
        ],
        "1 caption file has rows that end after the video's end": [
            f"{captions / 'long.csv'}: row 2 (3 to 9 s); long.mp4 ends at 4.17 s"
        ],
        "1 caption file is not in time order": [f"{captions / 'order.csv'}: row 2 (0 to 1 s)"],
        "1 caption file has rows without text": [f"{captions / 'silent.csv'}: row 2 (1 to 3 s) and 1 more"],
    }
    assert found["1 video is cut off"][0].startswith(f"{videos / 'cut.mp4'}: truncated")
    assert found["1 file is not UTF-8"][0].startswith(f"{captions / 'latin.csv'}: not a UTF-8 csv file")
    assert lines[0].startswith(f"{hostile}: 1 list, 19 videos, ")
    assert lines[0].endswith(" checked, 20 problems")


def test_every_headline_says_what_to_do(hostile, capsys):
    _, lines = run(capsys, hostile, *SMALL)
    for line in lines[1:]:
        assert line.startswith("  ") or len(line.split(": ", 1)[1]) > 10


def test_the_command(root, hostile, tmp_path):
    """The packaged clips as a person checks them; exit status 0, nothing written."""
    clips = root / "data_prep" / "clips"
    before = sorted(clips.rglob("*"))
    words = ["--check", str(clips), "--smallest_side", "160"]
    command, here = [sys.executable, "-m", "data_prep.milnce", *words], {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=here)
    assert (done.returncode, done.stdout) == (0, f"{clips}: 1 list, 10 videos, 54 captions checked, no problems\n")
    assert before == sorted(clips.rglob("*"))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_list(hostile, tmp_path, capsys):
    """Every video below it, with the caption files beside them."""
    for name in ("fine", "late", "no_file"):
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / f"{name}.mp4").symlink_to(hostile / "videos" / f"{name}.mp4")
        if name != "no_file":
            (tmp_path / "deep" / f"{name}.csv").symlink_to(hostile / "captions" / f"{name}.csv")
    status, lines = run(capsys, tmp_path, *SMALL)
    assert status == 1
    assert set(by_reason(lines)) == {
        "1 video has no captions",
        "1 caption file has rows that begin after the video's end",
    }
    assert lines[0].startswith(f"{tmp_path}: 1 list, 3 videos, 5 captions checked")


def test_folders_and_list_by_name(hostile, tmp_path, capsys):
    write_rows(tmp_path / "mine.csv", [["video_path"], ["fine.mp4"]])
    words = ["--list", str(tmp_path / "mine.csv"), "--videos", str(hostile / "videos"), "--captions", str(tmp_path)]
    (tmp_path / "fine.csv").write_text("start,end,text\n0,2,a\n")
    status, lines = run(capsys, tmp_path, *words, *SMALL)
    assert (status, lines) == (0, [f"{tmp_path}: 1 list, 1 video, 1 caption checked, no problems"])


@pytest.mark.parametrize(
    ("columns", "rows", "path", "headline", "detail"),
    [
        (
            "end,start,task,text,video_id",
            ["3,1,101,a,good", "1,3,101,b,good"],
            "validation/101/good.mp4",
            "1 caption file has rows that end before they begin",
            "{list}, {path}: row 2 (3 to 1 s)",
        ),
        (
            "key,vid_key,video_id,sentence",
            ["r0,m1,good,a", "r1,m1,good,"],
            "good.mp4",
            "1 caption file has rows without text",
            "{list}, {path}: row 2 (0 s)",
        ),
        (
            "video_path,start,end,text",
            ["good.mp4,1,3,a", "good.mp4,9,12,b"],
            "good.mp4",
            "1 caption file has rows that begin after the video's end",
            "{list}, {path}: row 2 (9 to 12 s); good.mp4 ends at 4.17 s",
        ),
        (
            "video_id,label,split1,split2,split3",
            ["good.avi,run_test,1,2,0", "gone.avi,run_test,1,2,0"],
            "run/good.avi",
            "1 video is missing",
            "{folder}/run/gone.avi: missing",
        ),
    ],
)
def test_evaluation_lists(tmp_path, capsys, columns, rows, path, headline, detail):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    write_video(tmp_path / path, grey(50, 32, 32), 12)
    (tmp_path / "list.csv").write_text("\n".join([columns, *rows]) + "\n")
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert by_reason(lines) == {headline: [detail.format(list=tmp_path / "list.csv", path=path, folder=tmp_path)]}


def test_lists_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("video_path,start,end,text\na.mp4,soon,2,b\n")
    (tmp_path / "b.csv").write_text("video_path,label\n")
    (tmp_path / "c.csv").write_text("start,end,text\n")
    status, lines = run(capsys, tmp_path)
    assert status == 1
    expected = f"{tmp_path / 'a.csv'}: line 2, column 'start': expected seconds, found 'soon'"
    assert by_reason(lines) == {"1 list cannot be used": [expected]}
    status, lines = run(capsys, tmp_path, "--list", str(tmp_path / "c.csv"))
    assert status == 1
    assert "its columns are those of no list that is known" in lines[2]


@pytest.mark.parametrize(
    ("folder", "message"), [("none", "no such folder"), (".", "no list that is known, and no video")]
)
def test_nothing_to_check(tmp_path, folder, message):
    with pytest.raises(DataError, match=message) as caught:
        milnce.main(["--check", str(tmp_path / folder)])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Training records in both forms, and an evaluation set, of one video."""
    folder = tmp_path_factory.mktemp("prepared")
    write_video(folder / "one.mp4", grey(50), 12)
    (folder / "one.csv").write_text("start,end,text\n0,2,a\n1,3,b\n2,4,c\n")
    write_rows(folder / "list.csv", [["video_path"], ["one.mp4"]])
    write_rows(folder / "queries.csv", [["video_path", "start", "end", "text"], ["one.mp4", "1", "3", "a"]])
    inputs = ["--list", folder / "list.csv", "--videos", folder, "--captions", folder]
    sizes = "--short_side 48 --smallest_side 48 --segment_seconds 2 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6"
    for form in ("jpeg", "mp4"):
        words = ["howto100m", *inputs, "--output", folder / form, "--format", form, *sizes.split()]
        milnce.main([*map(str, words)])
    words = ["segments", "--csv", folder / "queries.csv", "--videos", folder, "--output", folder / "retrieval"]
    milnce.main([*map(str, words), *"--windows 2 --num_frames 4 --size 32".split()])
    return folder


@pytest.mark.parametrize(("kind", "records"), [("jpeg", "2 records"), ("mp4", "2 records"), ("retrieval", "1 record")])
def test_prepared_data_is_well(prepared, capsys, kind, records):
    status, lines = run(capsys, prepared / kind)
    assert (status, lines) == (0, [f"{prepared / kind}: 1 split, 1 shard, {records} checked, no problems"])


def changed(source, target, change):
    """A copy of a data set with something done to every record, checksums made afterwards."""
    for path in source.iterdir():
        if ".tfrecord-" not in path.name:
            (target / path.name).symlink_to(path)
            continue
        with tf.io.TFRecordWriter(str(target / path.name)) as writer:
            for serialised in tf.data.TFRecordDataset(str(path)):
                example = tf.train.Example.FromString(serialised.numpy())
                change(example.features.feature)
                writer.write(example.SerializeToString(deterministic=True))
    return target


def overwrite(name, begin, value):
    def change(features):
        values = features[name].bytes_list.value
        values[0] = values[0][:begin] + value + values[0][begin + len(value) :]

    return change


def number(name, value):
    def change(features):
        features[name].int64_list.value[0] = value

    return change


def captions_at(start, end):
    def change(features):
        for name, value in (("caption_start", start), ("caption_end", end)):
            old = features[name].bytes_list.value
            old[0] = np.full(len(old[0]) // 8, value).tobytes()

    return change


@pytest.mark.parametrize(
    ("kind", "change", "reason", "detail"),
    [
        ("jpeg", overwrite("frames", 0, b"??"), "frames that cannot be decoded", "Unknown image file format"),
        ("mp4", overwrite("mp4", 0, b"?" * 90), "frames that cannot be decoded", "no mp4 file"),
        ("mp4", overwrite("mp4", 900, b"?" * 60), "frames that cannot be decoded", "damaged"),
        (
            "retrieval",
            overwrite("frames", 40, b"??"),
            "frames that cannot be decoded",
            "record at byte 0: Invalid PNG. Failed to initialize decoder.",
        ),
        ("jpeg", number("height", 50), "frames that cannot be decoded", "frame 0 is 48 x 64, expected 50 x 64"),
        ("mp4", number("width", 66), "frames that cannot be decoded", "frames of (48, 64), expected (48, 66)"),
        ("jpeg", captions_at(1.0, 0.5), "captions that do not fit", "clips begin in it, the index says"),
        ("mp4", number("caption_total", 1), "captions that do not fit", "3 starts, 3 ends, 3 texts"),
    ],
)
def test_prepared_data_that_is_not(prepared, tmp_path, capsys, kind, change, reason, detail):
    status, lines = run(capsys, changed(prepared / kind, tmp_path, change))
    assert status == 1
    ((headline, examples),) = by_reason(lines).items()
    assert reason in headline
    assert examples[0].startswith(f"{tmp_path}/")
    assert detail in examples[0]


def test_clips_that_are_black(tmp_path, capsys):
    write_video(tmp_path / "one.mp4", grey(50), 12)
    (tmp_path / "one.csv").write_text("start,end,text\n0,2,a\n7,9,b\n")
    write_rows(tmp_path / "list.csv", [["video_path"], ["one.mp4"]])
    inputs = [
        "--list",
        tmp_path / "list.csv",
        "--videos",
        tmp_path,
        "--captions",
        tmp_path,
        "--output",
        tmp_path / "made",
    ]
    sizes = "--short_side 48 --smallest_side 48 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6"
    milnce.main(["howto100m", *map(str, inputs), *sizes.split()])
    capsys.readouterr()
    status, lines = run(capsys, tmp_path / "made")
    assert status == 1
    ((headline, (example,)),) = by_reason(lines).items()
    assert headline == "1 record has captions that begin after the video's end"
    assert example.endswith("one ends at 4.2 s, a caption begins at 7 s")


def test_unknown_kinds(prepared, tmp_path, capsys):
    changed(prepared / "jpeg", tmp_path, lambda features: None)
    text = (tmp_path / "protocol.json").read_text()
    (tmp_path / "protocol.json").unlink()
    (tmp_path / "protocol.json").write_text(text.replace("milnce_training", "film"))
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert "kind = 'film' is not one of milnce_training" in lines[2]

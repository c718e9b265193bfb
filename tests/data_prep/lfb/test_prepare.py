"""Preparation of keyframes from extracted frames and from video files."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from keyframe_files import options, prepared, write_frames, write_inputs
from ml_collections import ConfigDict

from data_prep.lfb import prepare
from data_prep.lfb.frames import Storage, film_records
from vlm_jax.data.record_examples import Split, read_features
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.systems.lfb.annotations import Sampling, read_rows
from vlm_jax.systems.lfb.boxes import read_boxes
from vlm_jax.systems.lfb.config import default_config
from vlm_jax.systems.lfb.data import FEATURES
from vlm_jax.systems.lfb.detections import read_csv
from vlm_jax.systems.lfb.keyframes import annotations_path, excluded_path, read_table, table_path
from vlm_jax.systems.lfb.task import make_task
from vlm_jax.video.write import write_video


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def records(folder, split="train"):
    return list(read_features(Split(folder, split), dict(FEATURES)))


def evaluator(folder, split):
    wanted = {"directory": folder, "split": split, "proposal_threshold": 0.9, "action_threshold": 0.0}
    return ConfigDict(wanted | {"mode": "reference", "write_bank": False})


def write_film(path, frames=40, fps=10):
    """Write a film whose frames are ever lighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (np.full((48, 64, 3), 5 * number % 256, np.uint8) for number in range(frames)), fps)


def film_options(folder, *more):
    words = ["--output", folder / "out", "--split", "train", "--videos", folder / "films", "--whole_films"]
    return ["keyframes", *map(str, (*words, "--num_shards", 1, "--fps", 10, "--interval", 4, "--jitter", 2, *more))]


def assert_same_rows(path, other):
    one, two = map(read_csv, (path, other))
    assert one.keyframes == two.keyframes
    for column, expected in zip(one[1:], two[1:], strict=True):
        np.testing.assert_array_equal(column, expected)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    prepared(folder)
    return folder


def test_jpegs_are_kept_and_records_have_the_frames_of_their_second(made):
    found = records(made / "out")
    names = [(record["video"].decode(), int(record["second"])) for record in found]
    assert names == [("a", 902), ("a", 903), ("a", 904), ("b", 902), ("b", 903)]
    for record in found:
        assert (record["height"], record["width"]) == (36, 48)
        centre = 4 * (int(record["second"]) - 900) + 1
        # Offsets of -4, -2, 0 and 2 frames, shifts of -1 and 0, one frame later or not, from frame 1 to frame 24.
        assert record["frame_numbers"].tolist() == list(range(max(1, centre - 5), min(24, centre + 3) + 1))
    raw = tf.data.TFRecordDataset([str(path) for path in Split(made / "out", "train").paths])
    for record, serialised in zip(found, raw, strict=True):
        stored = tf.train.Example.FromString(serialised.numpy()).features.feature["frames"].bytes_list.value
        folder = made / "frames" / record["video"].decode()
        assert list(stored) == [(folder / f"img_{n:05d}.jpg").read_bytes() for n in record["frame_numbers"]]


def test_the_table_has_people_proposals_and_copies_of_the_annotations(made):
    table = read_table(made / "out", "train")
    assert table.training
    assert [table.key(number)[1] for number in range(5)] == [902, 903, 904, 902, 903]
    boxes, labels = table.truth(1)
    np.testing.assert_allclose(boxes, [[0, 0.2, 0.4, 0.9], [0.1, 0.2, 0.5, 0.9]])
    assert [np.flatnonzero(row).tolist() for row in labels] == [[12, 17], [12, 18]]
    assert [len(table.proposed(0, threshold)) for threshold in (0.9, 0.85, 0.0)] == [1, 2, 3]
    np.testing.assert_array_equal(table.proposed(1, 0.9), [[0, 0, 1, 1, 1]])
    copied, _ = read_rows(annotations_path(made / "out", "train"), 81)
    assert copied == read_rows(made / "train.csv", 81)[0]
    assert excluded_path(made / "out", "train").read_bytes() == b"b,0904\n"
    protocol = json.loads((made / "out" / "protocol.json").read_text())["protocol"]
    assert protocol["actions"]["12"] == "stand"
    assert {name: protocol[name] for name in ("kind", "fps", "num_frames", "interval", "jitter", "num_classes")} == {
        **{"kind": "lfb_keyframes", "fps": 4, "num_frames": 4, "interval": 2, "jitter": 1, "num_classes": 81}
    }


def test_counts_are_printed(tmp_path, capsys):
    write_inputs(tmp_path)
    with open(tmp_path / "train.csv", "a") as file:
        file.write("a,902,0.1,0.1,0.5,0.5,0,0\na,902,10,10,300,200,12,0\n")
    prepared(tmp_path)
    said = capsys.readouterr().out
    assert "2 videos, 5 keyframes, 7 people, 1 keyframes excluded, 80 actions, 60 of them evaluated" in said
    assert "3 keyframes have no proposals" in said
    assert "1 rows skipped: action that is not one of 1 to 80" in said
    assert "1 rows skipped: box outside of 0 to 1" in said
    assert "24 to 24 frames per video, 0 videos with fewer than 24" in said
    # Evaluation reads the rows that can be used, and no others.
    copied = annotations_path(tmp_path / "out", "train")
    assert len(copied.read_text().splitlines()) == 16
    assert len(read_csv(copied).actions) == 16
    faults = (tmp_path / "out" / "keyframes-train.faults.csv").read_text()
    assert f"{tmp_path / 'train.csv'}: line 17: " in faults
    assert (tmp_path / "out" / "keyframes-train.videos.csv").read_text() == (
        "video,frames,keyframes,records\na,24,3,3\nb,24,2,2\n"
    )


def test_rows_that_were_skipped_are_not_in_the_copy_of_the_annotations(tmp_path):
    """They neither stop the evaluation nor count as people to be found."""
    write_inputs(tmp_path)
    good = tmp_path / "good.csv"
    shutil.copy(tmp_path / "train.csv", good)
    lines = good.read_text().splitlines()
    unusable = ["a,0902,0.9,0.1,0.5,0.5,12,0", "a,0999,0.1,0.1,0.5,0.5,12,0", "a,0902,10,10,300,200,12,0", "a,0902"]
    (tmp_path / "train.csv").write_text("\n".join([*unusable[:2], *lines[:5], *unusable[2:], *lines[5:]]))
    path = annotations_path(prepared(tmp_path, split="val"), "val")
    assert len(path.read_text().splitlines()) == len(lines)
    assert_same_rows(path, good)


def test_annotations_without_ids_of_people_are_copied_without_them(tmp_path):
    write_inputs(tmp_path)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    folder = prepared(tmp_path)
    assert (read_csv(annotations_path(folder, "train")).scores == 1).all()
    assert (read_table(folder, "train").people == -1).all()


def test_proposals_of_a_csv_file_are_those_of_a_pickle(made, capsys):
    rows = ["0.0,0.2,0.4,0.9,0.95", "0.5,0.5,0.9,0.9,0.85", "0.1,0.1,0.2,0.2,0.1"]
    path = made / "proposals.csv"
    path.write_text("\n".join(f"{video}.mp4,902,{row}" for video in "ab" for row in rows))
    folder = prepared(made, "--proposals", str(path), output="of_csv")
    assert table_path(folder, "train").read_bytes() == table_path(made / "out", "train").read_bytes()
    with pytest.raises(DataError, match=r"nowhere\.csv: No such file"):
        prepared(made, "--proposals", "nowhere.csv", output="never")


def test_annotated_people_as_proposals_are_said_and_stated(made, capsys):
    folder = prepared(made, "--proposals", "annotated", output="annotated")
    assert "an evaluation is told where people are" in capsys.readouterr().out
    table = read_table(folder, "train")
    np.testing.assert_array_equal(table.proposals[:, :4], table.boxes)
    assert (table.proposals[:, 4] == 1).all()
    assert json.loads((folder / "protocol.json").read_text())["protocol"]["annotated_proposals"] is True
    with pytest.raises(DataError, match="these are found by a detector; prepare all splits of a folder alike"):
        prepared(made, output="annotated", split="val")
    config = default_config()
    config.detection.val = evaluator(str(folder), "train")
    config.detection.found = evaluator(str(made / "out"), "train")
    stated = {name: each.protocol["boxes"] for name, each in make_task(config).evaluators.items()}
    assert stated["val"] == "those of the annotated people"
    assert stated["found"] == "proposals with a score of at least 0.9, or the best"
    words = [word for word in options(made, "never", "train", "--proposals", "annotated") if "train.csv" not in word]
    words.remove("--annotations")
    with pytest.raises(DataError, match="--proposals annotated: there are no --annotations"):
        prepare.main(words)


def test_people_found_by_opencv_are_proposals(tmp_path, root, capsys):
    films = tmp_path / "films"
    films.mkdir()
    shutil.copy(root / "data_prep/clips/chaplin.mp4", films)
    (films / "broken.mp4").write_bytes(b"no film")
    output = tmp_path / "boxes.csv"
    words = ["people", "--videos", str(films), "--output", str(output)]
    prepare.main(words)
    assert "people in 1 films, 1 skipped\n  " in capsys.readouterr().out
    found = read_boxes(output)
    assert list(found) == ["chaplin"]
    assert {second: len(rows) for second, rows in found["chaplin"].items()}[4] == 2
    # The same command again takes what was found from its own files.
    whole = output.read_bytes()
    (films / "chaplin.mp4").write_bytes(b"")
    output.unlink()
    prepare.main([*words, "--workers", "2"])
    assert output.read_bytes() == whole
    for folder, message in ((tmp_path / "nowhere", "no such folder"), (root / "docs", "no films")):
        with pytest.raises(DataError, match=message):
            prepare.main(["people", "--videos", str(folder), "--output", str(output)])


def test_evaluation_records_have_their_own_frames_only_in_the_same_folder(made):
    prepared(made, "--keep_excluded", split="val")
    found = records(made / "out", "val")
    assert len(found) == 6
    assert found[1]["frame_numbers"].tolist() == [9, 10, 11, 12, 13, 14, 15, 16]
    assert not read_table(made / "out", "val").training
    assert len(records(made / "out", "train")) == 5


def test_chosen_actions_become_the_first_columns(made):
    prepared(made, "--actions", "17,12", output="chosen")
    table = read_table(made / "chosen", "train")
    assert [np.flatnonzero(row).tolist() for row in table.truth(1)[1]] == [[1, 2], [1]]
    protocol = json.loads((made / "chosen" / "protocol.json").read_text())["protocol"]
    assert (protocol["num_classes"], list(protocol["actions"])) == (3, ["12", "17"])


def test_workers_and_a_resumed_preparation_give_the_same_bytes(made, tmp_path):
    shutil.copytree(made / "frames", tmp_path / "frames")
    for name in ("train.csv", "excluded.csv", "proposals.pkl"):
        shutil.copy(made / name, tmp_path / name)
    prepared(tmp_path, "--workers", "2")
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "keyframes-train.index-00001-of-00002.npy").unlink()
    (tmp_path / "out" / "keyframes-train.tfrecord-00001-of-00002").write_bytes(b"begun")
    (tmp_path / "out" / "keyframes-train.table.npz").unlink()
    prepared(tmp_path)
    assert content(tmp_path / "out") == whole
    prepare.main(options(tmp_path, "parts", "train", "--shard_index", "0"))
    prepare.main(options(tmp_path, "parts", "train", "--shard_index", "1"))
    assert not (tmp_path / "parts" / "keyframes-train.table.npz").exists()
    prepare.main(options(tmp_path, "parts", "train", "--finalize"))
    assert content(tmp_path / "parts") == whole


def test_missing_and_damaged_frames_are_listed_and_made_good_later(tmp_path, capsys):
    write_inputs(tmp_path)
    missing, damaged = (tmp_path / "frames" / "a" / f"img_{number:05d}.jpg" for number in (5, 20))
    kept = missing.read_bytes(), damaged.read_bytes()
    missing.unlink()
    damaged.write_bytes(b"no jpeg")
    shutil.rmtree(tmp_path / "frames" / "b")
    folder = prepared(tmp_path)
    said = capsys.readouterr().out
    assert "1 x frame is missing" in said
    assert "1 x frame cannot be decoded" in said
    assert "2 x no folder with frames" in said
    listed = (folder / "skipped.csv").read_text()
    assert "img_00005.jpg; the folder has 23 frames" in listed
    assert "img_00020.jpg: 7 bytes that are no JPEG" in listed
    assert len(read_table(folder, "train")) == 1
    missing.write_bytes(kept[0])
    damaged.write_bytes(kept[1])
    write_frames(tmp_path / "frames", "b")
    prepared(tmp_path)
    assert len(read_table(folder, "train")) == 5


def test_frames_are_scaled_if_asked_and_never_enlarged(made):
    prepared(made, "--short_side", "18", output="small")
    found = records(made / "small")
    assert {(int(record["height"]), int(record["width"])) for record in found} == {(18, 24)}
    prepared(made, "--short_side", "100", output="large")
    assert {int(record["height"]) for record in records(made / "large")} == {36}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--end_second", "900"], "--end_second: 900, expected more than --start_second = 900"),
        (["--actions", "2"], "--actions: 2 is not one of the actions of AVA"),
        (["--jitter", "-1"], "--jitter: expected at least 0, found -1"),
        (["--frame_name", "img_{x}.jpg"], "--frame_name: 'img_{x}.jpg', expected a form"),
        (["--start_second", "0", "--end_second", "10"], "no keyframe is left (16 rows: second after 10)"),
        (["--frames", "nowhere"], "--frames: nowhere: no such folder"),
    ],
)
def test_options_that_cannot_be_used(made, words, message):
    with pytest.raises(DataError) as error:
        prepared(made, *words, output="never")
    assert message in str(error.value)
    assert not (made / "never").exists()


def test_other_options_do_not_resume_a_folder(made):
    with pytest.raises(DataError, match="begun with jitter = 1, now it is 0"):
        prepared(made, "--jitter", "0")
    with pytest.raises(DataError, match=r"protocol\.json: its jitter is 1, expected 0"):
        prepared(made, "--jitter", "0", split="test")


def test_whole_films_without_annotations(tmp_path):
    write_film(tmp_path / "films" / "film.mp4")
    prepare.main(film_options(tmp_path, "--seconds", "all"))
    found = records(tmp_path / "out")
    assert [int(record["second"]) for record in found] == [0, 1, 2, 3]
    assert found[0]["frame_numbers"].tolist() == list(range(1, 8))
    assert found[3]["frame_numbers"].tolist() == list(range(21, 38))
    for record in found:
        lights = [np.rint(frame.mean() / 5) + 1 for frame in record["frames"]]
        np.testing.assert_array_equal(lights, record["frame_numbers"])


def test_a_film_gives_the_same_frames_wherever_decoding_begins(tmp_path):
    write_film(tmp_path / "film.mp4", 80)
    storage = Storage(Sampling(4, 4, 10, 2), 0, None)
    whole = list(film_records([("film", second) for second in range(8)], videos=tmp_path, storage=storage))
    for second in (0, 3, 7):
        (alone,) = film_records([("film", second)], videos=tmp_path, storage=storage)
        assert alone.example["frames"] == whole[second].example["frames"]
    assert [record.group for record in whole] == list(range(8))


def test_films_that_end_too_early_or_are_missing(tmp_path):
    write_film(tmp_path / "film.mp4", 40)
    (tmp_path / "empty.mp4").write_bytes(b"")
    sampling = Sampling(4, 4, 10, 2)
    cut = Storage(sampling, 900, 910, video_start=900)
    found = list(
        film_records([("film", 902), ("film", 908), ("gone", 902), ("empty", 902)], videos=tmp_path, storage=cut)
    )
    assert isinstance(found[0], Record)
    assert [(skip.item, skip.reason) for skip in found[1:]] == [
        ("film,0908", "second after the end of the film"),
        ("gone,0902", "video is missing"),
        ("empty,0902", "video is empty"),
    ]
    whole = Storage(sampling, 0, None)
    last, beyond = film_records([("film", 3), ("film", 9)], videos=tmp_path, storage=whole)
    assert last.example["frame_numbers"].tolist()[-1] == 37
    assert isinstance(beyond, Skip)
    (cut_short,) = film_records([("film", 3)], videos=tmp_path, storage=Storage(Sampling(4, 8, 10, 0), 0, None))
    assert cut_short.example["frame_numbers"].tolist() == [15, 16, 23, 24, 31, 32, 39, 40]


def test_the_packaged_clip(tmp_path, root):
    clips = root / "data_prep" / "clips"
    words = ["--output", tmp_path, "--split", "val", "--videos", clips, "--annotations", clips / "chaplin_ava.csv"]
    prepare.main(["keyframes", *map(str, words), "--whole_films", "--num_shards", "1"])
    table = read_table(tmp_path, "val")
    assert [second for _, second in map(table.key, range(len(table)))] == list(range(1, 10))
    assert len(table.people) == 17
    assert table.labels.sum() == 25
    assert all(len(record["frame_numbers"]) == 8 for record in records(tmp_path, "val")[1:8])


def test_annotations_of_the_synthetic_world(tmp_path):
    from data_prep.synthetic import prepare as world

    world.main(["--output", str(tmp_path), "--train", "1", "--test", "1", "--seconds", "6"])
    words = ["--output", tmp_path / "out", "--split", "train", "--videos", tmp_path / "train" / "videos"]
    words += ["--annotations", tmp_path / "train" / "boxes.csv", "--labels", tmp_path / "actions.csv", "--whole_films"]
    prepare.main(
        ["keyframes", *map(str, words), "--num_shards", "1", "--fps", "10", "--interval", "4", "--jitter", "2"]
    )
    table = read_table(tmp_path / "out", "train")
    assert len(table) >= 5
    assert table.labels.shape[1] == 17
    truth = read_csv(annotations_path(tmp_path / "out", "train"))
    assert len(truth.actions) == table.labels.sum()

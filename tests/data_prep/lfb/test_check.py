"""Checks of raw and prepared keyframes name the usual causes of an mAP near 0."""

import json
import pickle
import shutil

import numpy as np
import pytest
from keyframe_files import prepared, write_inputs

from data_prep.lfb import prepare
from vlm_jax.systems.lfb.actions import AVA_ACTIONS, write_label_map


@pytest.fixture
def said(capsys):
    """Return a function that runs the check and returns what it prints and whether it found problems."""

    def run(*words):
        capsys.readouterr()
        try:
            prepare.main(["--check", *map(str, words)])
        except SystemExit as ended:
            return capsys.readouterr().out, ended.code == 1
        return capsys.readouterr().out, False

    return run


def raw(folder, *more):
    options = {"annotations": "train.csv", "excluded": "excluded.csv", "proposals": "proposals.pkl"}
    words = [word for name, file in options.items() for word in (f"--{name}", folder / file)]
    return [folder / "frames", *words, "--start_second", 900, "--end_second", 906, "--fps", 4, *more]


def write_all_proposals(folder, **changes):
    boxes = np.array([[0.0, 0.2, 0.4, 0.9, 0.95]])
    content = {f"{video},0{second}": boxes for video in "ab" for second in (902, 903, 904)}
    (folder / "proposals.pkl").write_bytes(pickle.dumps(content | changes))


@pytest.fixture
def folder(tmp_path):
    write_inputs(tmp_path)
    write_all_proposals(tmp_path)
    return tmp_path


def test_good_data_have_no_problems(folder, said):
    out, bad = said(*raw(folder))
    assert not bad, out
    assert "16 rows, 6 proposals, 2 videos checked, no problems" in out
    out, bad = said(prepared(folder))
    assert not bad, out
    assert "5 records, 1 table" in out


def test_proposals_of_a_csv_file_are_checked_as_those_of_a_pickle(folder, said):
    path = folder / "boxes.csv"
    path.write_text("".join(f"{video},{second},0,0.2,0.4,0.9,0.5\n" for video in "ab" for second in (902, 903)))
    out, bad = said(*raw(folder, "--proposals", path))
    assert bad
    assert "1 keyframe has no proposals" in out
    assert f"{path}: the highest score is 0.5, the threshold 0.85" in out
    path.write_text("a,902,1,2,30,40\n")
    assert f"{path}, line 1: y1 is 2, expected a fraction" in said(*raw(folder, "--proposals", path))[0]


def changed(old, new):
    def change(folder):
        text = (folder / "train.csv").read_text()
        (folder / "train.csv").write_text(text.replace(old, new))

    return change


def shift_labels(folder):
    lines = [line.split(",") for line in (folder / "train.csv").read_text().splitlines()]
    moved = [",".join([*cells[:6], str(int(cells[6]) - 12), cells[7]]) for cells in lines]
    (folder / "train.csv").write_text("\n".join(moved) + "\n")


def remove_frames(folder):
    for number in range(15, 25):
        (folder / "frames" / "a" / f"img_{number:05d}.jpg").unlink()


def add_frames(folder):
    for number in range(25, 34):
        shutil.copy(folder / "frames" / "a" / "img_00001.jpg", folder / "frames" / "a" / f"img_{number:05d}.jpg")


def remove_one_frame(folder):
    (folder / "frames" / "a" / "img_00003.jpg").unlink()


def empty_last_frame(folder):
    (folder / "frames" / "a" / "img_00024.jpg").write_bytes(b"")


def name_all_classes(folder):
    write_label_map(folder / "list.pbtxt", AVA_ACTIONS)


def other_films(folder):
    for video in "ab":
        (folder / "frames" / video).rename(folder / "frames" / f"{video}{video}")


def one_film_less(folder):
    (folder / "frames" / "b").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shift_labels, "8 rows have the action 0: actions are numbered from 1"),
        (changed(",12,", ",99,"), "8 rows have an action beyond the list"),
        (changed(",0.9,", ",220,"), "rows have a box outside of 0 to 1: boxes are shares of the frame"),
        (changed("a,0902", "a,0002"), "2 rows have a second outside of the annotated part"),
        (changed("a,0902,0.0", "a,0902,x"), "2 rows cannot be used"),
        (changed("0.9,18", "0.9,12"), "2 rows are odd, but used"),
        (other_films, "1 list of annotations is of other videos: is it the list of this split"),
        (one_film_less, "1 annotated video is missing"),
        (remove_frames, "1 video has too few or too many frames: counts depend on the extractor"),
        (add_frames, "1 video has too few or too many frames"),
        (remove_one_frame, "1 folder lacks frames between others"),
        (empty_last_frame, "1 frame cannot be decoded"),
        (lambda folder: write_all_proposals(folder, **{"a,0902": np.zeros((0, 5))}), "1 list of proposals is empty"),
        (lambda folder: (folder / "proposals.pkl").write_bytes(pickle.dumps({})), "5 keyframes have no proposals"),
        (lambda folder: (folder / "proposals.pkl").write_bytes(b"x"), "1 file cannot be used"),
    ],
)
def test_each_cause_is_named(folder, said, damage, message):
    damage(folder)
    out, bad = said(*raw(folder))
    assert bad
    assert message in out


def test_low_scores_and_a_list_of_all_actions(folder, said):
    low = {f"{video},0{second}": np.full((1, 5), 0.5) for video in "ab" for second in (902, 903, 904)}
    write_all_proposals(folder, **low)
    name_all_classes(folder)
    out, bad = said(*raw(folder, "--labels", folder / "list.pbtxt"))
    assert bad
    assert "1 file of proposals has no score above the threshold" in out
    assert "1 list of actions names all 80 of AVA: AVA evaluates 60" in out


def test_prepared_data_that_do_not_fit_their_annotations(folder, said):
    shutil.rmtree(folder / "frames" / "b")
    out = prepared(folder)
    found, bad = said(out)
    assert bad
    assert "2 annotated keyframes have no record: evaluation counts their people as missed" in found
    (out / "keyframes-train.table.npz").write_bytes(b"")
    found, bad = said(out)
    assert bad
    assert "1 table does not fit its records" in found
    content = json.loads((out / "protocol.json").read_text())
    content["protocol"]["start_second"] = 901
    (out / "protocol.json").write_text(json.dumps(content))
    assert "records do not have the frames of their second" in said(out)[0]


def test_keyframes_that_are_evaluated_without_proposals(folder, said):
    (folder / "proposals.pkl").write_bytes(pickle.dumps({"a,0902": np.array([[0.0, 0.2, 0.4, 0.9, 0.95]])}))
    assert not said(prepared(folder))[1]
    found, bad = said(prepared(folder, output="val", split="val"))
    assert bad
    assert "4 keyframes have no proposals: they get the whole frame as their only box" in found


def test_video_files_without_annotations(tmp_path, said, root):
    shutil.copy(root / "data_prep" / "clips" / "chaplin.mp4", tmp_path)
    assert "1 video checked, no problems" in said(tmp_path)[0]
    (tmp_path / "bad.mp4").write_bytes(b"bad")
    assert "1 video cannot be decoded" in said(tmp_path)[0]

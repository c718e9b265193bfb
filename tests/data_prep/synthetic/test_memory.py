"""Long-memory films: the cue decides labels of later frames that are the same without it."""

import pickle

import numpy as np
import pytest

from data_prep.synthetic import drawing, memory, prepare
from vlm_jax.errors import DataError
from vlm_jax.systems.lfb.actions import read_actions
from vlm_jax.systems.lfb.boxes import read_boxes
from vlm_jax.video import decode

SIZE = 48


def film(number, split="train"):
    scenes, kind = memory.make_film(number, split, seed=3, seconds=24)
    rows = [(second, box, memory.LABELS[label - 1], who) for second, *box, label, who in memory.labels(scenes, kind)]
    return scenes, kind, rows


@pytest.fixture(scope="module")
def quartet():
    return [film(number) for number in range(4)]


def test_later_frames_are_the_same_and_their_labels_are_not(quartet):
    frames = [np.stack(list(drawing.frames(scenes, 5, SIZE))) for scenes, _, _ in quartet]
    cut = 5 * (memory.CUE_SECONDS - 2)
    for other, (_, kind, rows) in zip(frames, quartet, strict=True):
        np.testing.assert_array_equal(other[cut:], frames[0][cut:])
        after = {label for second, _, label, _ in rows if second >= memory.CUE_SECONDS} & set(memory.AFTER)
        assert after == ({f"after a {kind} star"} if kind else set())
    assert [kind for _, kind, _ in quartet] == [None, "white", "pink", "cyan"]
    assert all((frames[0][:cut] != other[:cut]).any() for other in frames[1:])


def test_only_the_cue_differs_in_the_labels(quartet):
    """All people of later seconds carry the label, none before; all else is the same."""
    scenes, _, _ = quartet[2]
    assert scenes[0].end == memory.CUE_SECONDS
    plain = quartet[0][2]
    for _, kind, rows in quartet[1:]:
        cue = [row for row in rows if row[3] == 2 and row[0] < memory.CUE_SECONDS]
        assert {label for _, _, label, _ in cue} == {f"{kind} star", "fade", "move"}
        assert {second for second, _, _, _ in cue} == {1, 2, 3, 4, 5}
        own = {(second, tuple(box)) for second, box, label, _ in rows if label in memory.AFTER}
        assert own == {(second, tuple(box)) for second, box, _, _ in plain if second >= memory.CUE_SECONDS}
        rest = [row[:3] for row in rows if row not in cue and row[2] not in memory.AFTER]
        assert rest == [row[:3] for row in plain]


def test_splits_and_films_differ_and_seeds_repeat():
    assert film(5) == film(5)
    assert film(0)[0][1:] != film(4)[0][1:]
    assert film(0)[0][1:] != film(0, "val")[0][1:]
    assert film(0, "test")[0][1:] != film(0, "val")[0][1:]


def test_files_in_ava_form(tmp_path):
    words = ["--long_memory", "--output", tmp_path, "--train", 2, "--val", 1, "--test", 1, "--seconds", 16]
    prepare.main([str(word) for word in (*words, "--size", SIZE, "--fps", 5)])
    actions = read_actions(tmp_path / "actions.pbtxt")
    assert tuple(actions.values()) == memory.LABELS
    assert list(actions) == list(range(1, 15))
    boxes = read_boxes(tmp_path / "train" / "boxes.csv")
    assert list(boxes) == ["train_00000", "train_00001"]
    proposed = pickle.loads((tmp_path / "train" / "proposals.pkl").read_bytes())
    for video, seconds in boxes.items():
        lasts = decode.probe(tmp_path / "train" / "videos" / f"{video}.mp4").duration
        assert max(seconds) < lasts < max(seconds) + 3
        for second, people in seconds.items():
            np.testing.assert_array_equal(proposed[f"{video},{second:04d}"], people.astype(np.float32))
    assert (tmp_path / "test" / "videos" / "test_00000.mp4").is_file()
    with pytest.raises(DataError, match="--seconds: expected at least 16, found 9"):
        prepare.main(["--long_memory", "--output", str(tmp_path), "--seconds", "9"])

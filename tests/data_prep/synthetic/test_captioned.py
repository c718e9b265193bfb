"""Captions, questions and options of SNP-S3 about the synthetic world."""

import collections
import json

import av
import numpy as np
import pytest

from data_prep.synthetic import captioned, drawing
from data_prep.synthetic import prepare as shapes
from data_prep.synthetic.world import ACTIONS, COLOURS, FORMS, SPLITS, Character, actions_of, events_of, make_video

VIDEOS = 12


@pytest.fixture(scope="module")
def rows():
    """The rows of twelve videos of each split, and their scenes."""
    made = {}
    for split in SPLITS:
        scenes = [make_video(np.random.default_rng((7, n)), split, 40) for n in range(VIDEOS)]
        found = [captioned.rows_of_video(np.random.default_rng(n), f"{n}", s, split) for n, s in enumerate(scenes)]
        made[split] = (found, scenes)
    return made


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def files(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for split in SPLITS:
        captioned.write(folder / split, rows[split][0], training=split == "train")
    return folder


def parts(found):
    return {(row["clip_name"], row["start"], row["end"]) for row in found}


def test_every_event_is_a_part_with_three_wordings(rows):
    for split in SPLITS:
        found, scenes = rows[split]
        pretraining = [row for video in found for row in video["pretraining"]]
        assert len(parts(pretraining)) == sum(len(events_of(s)) for s in scenes)
        assert len(pretraining) == 3 * len(parts(pretraining))
        for row in pretraining:
            assert 1.5 < row["end"] - row["start"] < 3
            assert len(row["caption"].split()) <= 28, "the text fits into the 28 tokens of an input"


def test_retrieval_has_one_part_per_description(files):
    for split, captions_per_part in (("train", 3), ("test", 1)):
        found = read(files / split / "retrieval.jsonl")
        assert len(found) == captions_per_part * len(parts(found))
        first = [row["caption"] for row in found if row["sen_id"] == 0]
        assert len(set(first)) == len(first) == len(parts(found))
        assert len(parts(found)) > 0.8 * len(parts(read(files / split / "pretraining.jsonl")))


def test_test_captions_and_answers_are_compositions_that_training_never_shows(rows):
    def told(split):
        found = [row for video in rows[split][0] for row in video["question_answering"]]
        return {(row["caption"], row["label"]) for row in found if row["caption"].startswith("what does")}

    train, test = told("train"), told("test")
    assert not train & test
    assert {answer for _, answer in test} <= {answer for _, answer in train}, "every answer is in the vocabulary"


def test_answers_are_a_small_vocabulary(rows):
    found = [row for split in SPLITS for video in rows[split][0] for row in video["question_answering"]]
    answers = {row["label"] for row in found}
    assert len(answers) <= len(ACTIONS) + len(COLOURS) * len(FORMS) + len(COLOURS) + len(captioned.NUMBERS) + 4 + 2
    kinds = collections.Counter(row["caption"].split()[0] for row in found)
    assert set(kinds) == {"what", "which", "how", "where", "is"}
    presence = collections.Counter(row["label"] for row in found if row["caption"].startswith("is there"))
    assert set(presence) == {"yes", "no"}
    assert min(presence.values()) > 0.3 * sum(presence.values())
    for split in SPLITS:
        qids = [row["qid"] for video in rows[split][0] for row in video["question_answering"]]
        assert len(set(qids)) == len(qids)


def test_static_answers_are_true(rows):
    """Questions about the end of a part, against the poses of the simulation."""
    checked = collections.Counter()
    for found, scenes in (rows[split] for split in SPLITS):
        for video, made in zip(found, scenes, strict=True):
            scene_at = {round(event.start, 2): (scene, event) for scene in made for event in scene.events}
            for row in video["question_answering"]:
                scene, event = scene_at[row["start"]]
                after = scene.poses_at(event.end)
                words = row["caption"].split()
                if words[0] == "how":
                    expected = captioned.NUMBERS[sum(pose.opacity > 0 for pose in after.values())]
                elif words[0] == "where":
                    expected = captioned.quadrant(after[Character(words[3], words[4])])
                elif words[0] == "which":
                    expected = f"{event.actor.colour} {event.actor.form}"
                elif words[:2] == ["is", "there"]:
                    who = Character(words[3], words[4])
                    seen = who in after and (after[who].opacity or scene.poses_at(event.start)[who].opacity)
                    expected = "yes" if seen else "no"
                else:
                    continue
                assert row["label"] == expected
                checked[words[0]] += 1
    assert min(checked.values()) > 20


def test_options_do_not_tell_which_is_right(rows):
    """Five distinct compositions of the split; actor and action of the right one occur in as many wrong ones."""
    for split in SPLITS:
        found, scenes = rows[split]
        places = collections.Counter()
        for video, made in zip(found, scenes, strict=True):
            events = events_of(made)
            for row, event in zip(video["multiple_choice"], events, strict=True):
                assert len(set(row["options"])) == len(row["options"]) == 5
                assert row["options"][int(row["answer"])] == captioned.sentence(
                    event.actor, event.action, event.partner
                )
                actors = collections.Counter(" ".join(option.split()[1:3]) for option in row["options"])
                assert sorted(actors.values()) == [1, 2, 2]
                assert actors[f"{event.actor.colour} {event.actor.form}"] == 2
                places[row["answer"]] += 1
                for option in row["options"]:
                    _, colour, form, *_ = option.split()
                    (action,) = (
                        a for a in ACTIONS if option.startswith(captioned.sentence(Character(colour, form), a, None))
                    )
                    assert action in actions_of(Character(colour, form), split)
        assert set(places) == set("01234")


def test_pictures_are_what_their_captions_say(tmp_path, rows):
    found, scenes = rows["test"]
    row = found[0]["pictures"][0]
    scene = scenes[0][int(row["clip_name"].split("_")[1].split(".")[0])]
    picture = next(drawing.frames([scene], 5, 64))
    path = tmp_path / "a.png"
    path.write_bytes(captioned.png(picture))
    with av.open(str(path)) as file:
        (frame,) = file.decode(video=0)
        np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), picture)
    for who, pose in scene.poses.items():
        assert (f"the {who.colour} {who.form} at the {captioned.quadrant(pose)}" in row["caption"]) == bool(
            pose.opacity
        )


def test_files_of_a_world(tmp_path):
    shapes.main(["--output", str(tmp_path), *"--train 3 --test 1 --seconds 10 --size 32 --fps 5".split()])
    for split in ("train", "validation", "test"):
        folder, media = tmp_path / split / "snps3", tmp_path / (split if split == "test" else "train")
        for use in ("pretraining", "retrieval", "question_answering", "multiple_choice"):
            found = read(folder / f"{use}.jsonl")
            assert found
            assert all((media / "videos" / row["clip_name"]).is_file() for row in found)
            assert {row["clip_name"] for row in found} == {
                "train": {"00000.mp4", "00001.mp4"},
                "validation": {"00002.mp4"},
                "test": {"00000.mp4"},
            }[split]
        assert all((media / "pictures" / row["clip_name"]).is_file() for row in read(folder / "pictures.jsonl"))


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (10, 1), (200, 20)])
def test_validation_videos(count, held_out):
    assert captioned.validation_videos(count) == held_out

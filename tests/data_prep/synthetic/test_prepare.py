import collections
import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest

from data_prep.synthetic import drawing, language
from data_prep.synthetic import prepare as shapes
from data_prep.synthetic.world import (
    ACTIONS,
    COLOURS,
    FORMS,
    SPLITS,
    Character,
    Event,
    Pose,
    Scene,
    actions_of,
    events_of,
    make_video,
    reverse,
)
from vlm_jax import annotations
from vlm_jax.errors import DataError
from vlm_jax.video import decode

EVERYONE = [Character(colour, form) for colour in COLOURS for form in FORMS]
ARGUMENTS = "--train 3 --test 2 --seconds 20 --size 48 --fps 10"
POSE = Pose(0.5, 0.5, 0.2, 0.3, 1.0)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    shapes.main(["--output", str(folder), *ARGUMENTS.split()])
    return folder


@pytest.fixture(scope="module")
def videos():
    """The scenes of twenty videos of each split."""
    return {split: [make_video(np.random.default_rng((7, n)), split, 60) for n in range(20)] for split in SPLITS}


def compositions(videos):
    return {(event.actor.colour, event.actor.form, event.action) for scenes in videos for event in events_of(scenes)}


def test_splits_share_all_parts_and_no_composition(videos):
    train, test = (compositions(videos[split]) for split in SPLITS)
    assert not train & test
    for made in train, test:
        for part, known in enumerate((COLOURS, FORMS, ACTIONS)):
            assert {composition[part] for composition in made} == set(known)
    for character in EVERYONE:
        assert len(actions_of(character, "test")) == 4
        assert {*actions_of(character, "train"), *actions_of(character, "test")} == set(ACTIONS)


def test_what_a_character_can_do_can_be_undone_in_the_same_split():
    for split, character in itertools.product(SPLITS, EVERYONE):
        assert {reverse(action) for action in actions_of(character, split)} == set(actions_of(character, split))


def test_events_are_what_their_names_say(videos):
    count = collections.Counter()
    for event in (event for split in SPLITS for scenes in videos[split] for event in events_of(scenes)):
        a, b = event.before, event.after
        seen = {
            "right": b.x - a.x,
            "left": a.x - b.x,
            "up": a.y - b.y,
            "down": b.y - a.y,
            "clockwise": b.angle - a.angle,
            "counterclockwise": a.angle - b.angle,
            "grow": b.radius - a.radius,
            "shrink": a.radius - b.radius,
            "appear": b.opacity - a.opacity,
            "vanish": a.opacity - b.opacity,
        }
        if event.partner is None:
            assert seen.pop(event.action) > 0.05
            seen.pop(reverse(event.action))
            assert not any(seen.values())
        assert 1.8 <= event.end - event.start <= 2.8
        count[event.action] += 1
    assert min(count[action] for action in ACTIONS) > 10


def test_company_is_kept_side_by_side(videos):
    for scene in (scene for split in SPLITS for scenes in videos[split] for scene in scenes):
        for event in scene.events:
            if event.partner:
                gaps = []
                for pose in event.before, event.after:
                    other = scene.poses_at(event.start)[event.partner]
                    gaps.append(np.hypot(pose.x - other.x, pose.y - other.y) - pose.radius - other.radius)
                together, apart = gaps if event.action == "leave" else gaps[::-1]
                assert abs(together) < 0.04
                assert apart > 0.04


def test_friends_have_met_before(videos):
    for scenes in videos["train"] + videos["test"]:
        met = set()
        for event in events_of(scenes):
            if event.partner:
                pair = frozenset((event.actor, event.partner))
                assert event.friends == (pair in met)
                met.add(pair)


@pytest.mark.parametrize("form", FORMS)
def test_boxes_are_what_is_drawn(form):
    """The box of what differs from the background, to a pixel."""
    size = 100
    scene = Scene(0.0, 1.0, {Character("yellow", form): POSE}, (), frozenset(), 5)
    hidden = dataclasses.replace(scene, poses={Character("yellow", form): dataclasses.replace(POSE, opacity=0.0)})
    (shown, *_), (empty, *_) = (list(drawing.frames([s], 10, size)) for s in (scene, hidden))
    y, x = np.nonzero(np.abs(shown.astype(int) - empty).sum(-1) > 100)
    found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / size
    np.testing.assert_allclose(found, drawing.box(form, POSE), atol=0.015)


def test_clockwise_is_clockwise_on_the_screen():
    """The tip of a triangle that points up points right after a quarter turn."""
    corners = [drawing.box("triangle", dataclasses.replace(POSE, angle=angle)) for angle in (0.0, np.pi / 2)]
    centre = POSE.x
    up, right = corners
    assert centre - up[1] > up[3] - centre
    assert right[2] - centre > centre - right[0]


def test_an_action_backwards_is_the_reverse_action():
    actor = Character("red", "cross")
    after = dataclasses.replace(POSE, x=0.8)
    poses = {actor: POSE}
    there = Scene(0.0, 2.0, poses, (Event(0.0, 1.9, actor, "right", None, POSE, after),), frozenset(), 3)
    back = Scene(0.0, 2.0, {actor: after}, (Event(0.0, 1.9, actor, "left", None, after, POSE),), frozenset(), 3)
    forwards, backwards = (np.stack(list(drawing.frames([s], 10, 48))) for s in (there, back))
    assert len(forwards) == 20
    np.testing.assert_allclose(forwards.astype(int), backwards[::-1], atol=1)


def test_everything_is_told_seconds_off(videos):
    rng = np.random.default_rng(0)
    shifts = []
    for scenes in videos["train"]:
        events = events_of(scenes)
        told = language.narrate(rng, events, 3.0)
        assert told == sorted(told)
        texts = [text for _, _, text in told]
        for event in events:
            said = [language.describe(event, form) for form in range(3)]
            heard = [start for start, _, text in told if any(text.endswith(sentence) for sentence in said)]
            assert heard
            if sum(texts.count(sentence) for sentence in said) == 1 and len(heard) == 1 and heard[0]:
                shifts.append(heard[0] - event.start)
        assert len(told) > len(events) or not set(texts) & set(language.ASIDES)
    assert len(shifts) > 100
    assert max(map(abs, shifts)) <= 3.01
    assert abs(np.mean(shifts)) < 0.4
    assert np.std(shifts) == pytest.approx(3 / np.sqrt(3), rel=0.15)


def test_moments_are_unique(videos):
    for scenes in videos["test"]:
        found = language.moments(scenes)
        texts = [language.describe(event) for event in events_of(scenes)]
        assert all(texts.count(text) == 1 for _, _, text in found)
        assert {(start, end) for start, end, _ in found} <= {(e.start, e.end) for e in events_of(scenes)}


def test_questions_have_one_right_option(videos):
    kinds = collections.Counter()
    for scenes in videos["train"]:
        for question in language.questions(np.random.default_rng(0), scenes):
            assert len(set(question.options)) == len(question.options) == 5
            assert question.options.count(question.answer) == 1
            kinds[question.question.split()[0]] += 1
            if question.question.startswith("what does"):
                assert reverse(question.answer) in question.options, "motion alone, without order, does not answer"
    assert set(kinds) == {"what", "who", "how"}


def test_files_of_a_world(world):
    assert len(rows(world / "actions.csv")) == len(shapes.LABELS)
    for split, count in (("train", 3), ("test", 2)):
        folder = world / split
        names = [row["video_path"] for row in rows(folder / "videos.csv")]
        assert names == [f"{number:05d}.mp4" for number in range(count)]
        for name in names:
            info = decode.probe(folder / "videos" / name)
            assert (info.width, info.height) == (48, 48)
            assert info.duration >= 20
            assert rows(folder / "captions" / name.replace("mp4", "csv"))
        queries = [row["text"] for row in rows(folder / "queries.csv")]
        assert len(set(queries)) == len(queries)
        for table in ("moments", "narration"):
            found = annotations.read(folder / f"{table}.jsonl")
            assert {query.video + ".mp4" for query in found.queries} == set(names)
            assert {fault.reason for fault in found.faults} <= {"beyond the video"}
            assert not (table == "moments" and found.faults)
        for table in ("queries", "questions"):
            for row in rows(folder / f"{table}.csv"):
                assert 0 <= float(row["start"]) < float(row["end"])
                assert row["video_path"] in names
        ceilings = json.loads((folder / "ceilings.json").read_text())
        assert ceilings["queries"] == len(queries) > 0
        assert ceilings["R@1 of who sees all but the order"] == 0.5, "every query's reverse is a query"
        assert ceilings["R@1 of who sees only who acts"] <= 0.5
        boxes = rows(folder / "boxes.csv")
        assert {row["video_id"] + ".mp4" for row in boxes} == set(names)
        for row in boxes:
            x1, y1, x2, y2 = (float(row[edge]) for edge in ("x1", "y1", "x2", "y2"))
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1


def test_colours_are_where_the_boxes_are(world):
    """Through the codec: in every box the character's colour shows."""
    folder = world / "test"
    scenes = make_video(np.random.default_rng((1, SPLITS.index("test"), 0)), "test", 20)
    frames = decode.read_frames(folder / "videos" / "00000.mp4")
    people, checked = {}, 0
    for row in rows(folder / "boxes.csv"):
        if row["video_id"] != "00000":
            continue
        second = int(row["second"])
        scene = next(scene for scene in scenes if scene.start <= second < scene.end)
        box = [float(row[edge]) for edge in ("x1", "y1", "x2", "y2")]
        fitting = [
            (character, pose)
            for character, pose in scene.poses_at(second).items()
            if np.allclose(drawing.box(character.form, pose), box, atol=1e-4)
        ]
        ((character, pose),) = fitting
        assert people.setdefault(row["character_id"], character) == character
        if pose.opacity == 1 and pose.angle == scene.poses[character].angle:
            pixel = frames[second * 10, int(pose.y * 48), int(pose.x * 48)].astype(int)
            assert np.abs(pixel - COLOURS[character.colour]).max() < 70
            checked += 1
    assert checked > 5


def test_long_past_labels(world):
    """'come back' is for those who were in an earlier scene, and says nothing about now."""
    scenes = make_video(np.random.default_rng((1, SPLITS.index("train"), 0)), "train", 20)
    labels = collections.defaultdict(set)
    for second, *_, label, number in shapes.boxes(scenes):
        labels[second, number].add(shapes.LABELS[label - 1])
    first_seen = {}
    for second, number in sorted(labels):
        scene = next(index for index, s in enumerate(scenes) if s.start <= second < s.end)
        earlier = first_seen.setdefault(number, scene) < scene
        assert ("come back" in labels[second, number]) >= earlier
        assert len(labels[second, number] & {*ACTIONS, "rest"}) == 1


def test_the_same_seed_is_the_same_world(world, tmp_path):
    shapes.main(["--output", str(tmp_path), *ARGUMENTS.split(), "--workers", "2"])
    ours, theirs = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path, world)
    )
    assert ours == theirs


def test_another_world_is_refused(world):
    with pytest.raises(DataError, match=r"world.json: begun with seed = 1, now it is 2"):
        shapes.main(["--output", str(world), *ARGUMENTS.split(), "--seed", "2"])


@pytest.mark.parametrize(("option", "message"), [("--size 47", "even number"), ("--train 0", "at least 1, found 0")])
def test_sizes_that_make_no_world(tmp_path, option, message):
    with pytest.raises(DataError, match=message):
        shapes.main(["--output", str(tmp_path), *option.split()])

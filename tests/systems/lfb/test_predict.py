"""From a film to people and actions, with a detector and with a model that looks at a bank of the film."""

import csv
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax import inference
from vlm_jax.errors import ConfigError, DataError
from vlm_jax.features import FeatureError
from vlm_jax.systems.lfb.config import default_config
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import save_variables
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

ACTIONS = {1: "rest", 2: "move", 3: "turn"}
BOXES = {1: [(0.1, 0.1, 0.4, 0.9), (0.5, 0.2, 0.9, 1.0)], 2: [(0.2, 0.1, 0.5, 0.9)], 4: [(0.0, 0.0, 0.5, 0.5)]}


def small(operator, **source):
    """A narrow model on clips of 32 pixels."""
    config = default_config()
    config.data.actions = ConfigDict({str(number): name for number, name in ACTIONS.items()})
    config.data.num_classes, config.data.box_buckets, config.data.bank_buckets = 4, (2, 32), (4, 32)
    config.batch_size = config.batch_groups = config.data.block = config.data.streams = 1
    config.clips.size = config.clips.evaluation_short_side = 32
    config.model.update(
        {"width": 0.125, "blocks": (1, 1, 1, 1), "operator": operator, "bank_dim": 256, "latent_dim": 8}
    )
    config.bank.update({"window": 4, "per_second": 1, "dtype": "float32", "source": source})
    return config


def save(folder, config, seed):
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if len(leaf.shape) > 1:
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) * (0.1 if path[-2].key == "fc_cls" else 1)
            return rng.normal(0, scale, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    save_variables(folder, jax.tree_util.tree_map_with_path(value, get_task(config).abstract_variables()), {})
    configs.write(config, folder / "config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    """A film of 5.2 s, a detector, and models with a bank of its features."""
    made = tmp_path_factory.mktemp("lfb")
    frames = decode.read_frames(root / "data_prep/clips/chaplin.mp4", seconds=5.2, fps=10, filters="scale=56:32")
    write_video(made / "film.mp4", frames, 10)
    write_video(made / "empty.mp4", np.full((30, 32, 32, 3), 90, np.uint8), 10)
    save(made / "baseline", small("none"), 0)
    fingerprint = inference.load(made / "baseline").fingerprint()
    for operator in ("max", "non_local"):
        source = {"checkpoint": str(made / "baseline"), "fingerprint": fingerprint}
        save(made / operator, small(operator, **source), 1)
    rows = [("film", second, *box, 0.8) for second, boxes in BOXES.items() for box in boxes]
    (made / "boxes.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def models(folder):
    return {name: inference.load(folder / name) for name in ("baseline", "max", "non_local")}


@pytest.mark.parametrize("name", ["baseline", "max", "non_local"])
def test_every_second_has_people_and_scores(folder, models, name):
    """Chaplin is found; where nobody is found, the whole frame is one box."""
    found = models[name].detect(folder / "film.mp4", threshold=0.0)
    assert sorted({person.second for person in found}) == [0, 1, 2, 3, 4, 5]
    assert {person.found_by for person in found} == {"opencv"}
    empty = models[name].detect(folder / "empty.mp4")
    assert [(person.second, person.box, person.found_by) for person in empty] == [
        (second, (0, 0, 1, 1), "frame") for second in range(3)
    ]
    for person in found:
        assert [action.id for action in sorted(person.actions, key=lambda action: action.id)] == [1, 2, 3]
        assert all(ACTIONS[action.id] == action.name for action in person.actions)
        scores = [action.score for action in person.actions]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= value <= 1 for value in scores)
    assert models[name].detect(folder / "film.mp4", threshold=1.0)[0].actions == []


def test_given_boxes_in_any_form(folder, models):
    """A csv file, arrays with or without scores, and small batches give the same."""
    model = models["max"]
    found = model.detect(folder / "film.mp4", folder / "boxes.csv", threshold=0)
    assert [person.second for person in found] == [1, 1, 2, 4]
    np.testing.assert_allclose([person.box for person in found], [box for own in BOXES.values() for box in own])
    assert {(person.found_by, round(person.score, 3)) for person in found} == {("given", 0.8)}
    for batch_size in (1, 3):
        other = model.detect(folder / "film.mp4", BOXES, threshold=0, batch_size=batch_size)
        for one, same in zip(found, other, strict=True):
            np.testing.assert_allclose([a.score for a in one.actions], [a.score for a in same.actions], rtol=1e-4)


def test_a_box_is_scored_as_in_its_clip(folder, models):
    """Against the network itself on the clip of one second."""
    model = models["baseline"]
    (row,) = model.score(folder / "film.mp4", {2: BOXES[2]})
    frames = decode.read_frames(folder / "film.mp4", fps=30, filters="")
    clip = frames[np.clip(60 + np.array([-32, -16, 0, 16]) + 1, 0, len(frames) - 1)]
    batch = {"video": clip[None], "boxes": np.float32([[np.array(BOXES[2][0]) * (56, 32, 56, 32)]])}
    expected = get_task(model.config).encoders["boxes"](model.variables, batch)
    np.testing.assert_allclose(row.scores, expected["scores"][0], rtol=1e-4)
    np.testing.assert_allclose(row.features, expected["features"][0], rtol=1e-4)
    assert row.features.shape == (1, 256)


def test_the_bank_is_the_window_of_the_film(folder, models):
    """Scores of second 4 depend on the people of seconds 2 to 5, one per second, and not on those of second 1."""
    model = models["max"]

    def last(**changed):
        boxes = {**BOXES, **{int(second): rows for second, rows in changed.items()}}
        return model.score(folder / "film.mp4", boxes)[-1].scores

    other = [(0.6, 0.1, 0.7, 0.3)]
    np.testing.assert_array_equal(last(), last(**{"1": other}))
    assert abs(last() - last(**{"2": other})).max() > 1e-6
    np.testing.assert_array_equal(last(), last(**{"2": [(*BOXES[2][0], 0.9), (0.6, 0.1, 0.7, 0.3, 0.5)]}))


def test_some_seconds_only_are_the_same(folder, models):
    """With a bank, neighbours of the wanted seconds are read nevertheless."""
    for name in ("baseline", "max"):
        whole = models[name].detect(folder / "film.mp4", folder / "boxes.csv", threshold=0)
        part = models[name].detect(folder / "film.mp4", folder / "boxes.csv", threshold=0, seconds=[2, 77])
        assert [person.second for person in part] == [2]
        expected = next(person for person in whole if person.second == 2)
        np.testing.assert_allclose([a.score for a in part[0].actions], [a.score for a in expected.actions], rtol=1e-4)
        assert models[name].detect(folder / "film.mp4", seconds=[77]) == []


@pytest.mark.parametrize("count", [1, 3])
def test_films_of_a_frame(models, tmp_path, count):
    write_video(tmp_path / "short.mkv", np.full((count, 33, 41, 3), 90, np.uint8), 25, lossless=True)
    (person,) = models["max"].detect(tmp_path / "short.mkv", detector="frame", threshold=0)
    assert (person.second, person.box, person.found_by) == (0, (0, 0, 1, 1), "frame")


def test_more_people_than_the_largest_bucket(folder, models):
    edges = np.linspace(0, 0.9, 40)
    many = np.stack([edges, edges * 0, edges + 0.1, edges * 0 + 1], axis=1)
    found = models["max"].detect(folder / "film.mp4", {1: many, 3: many[:1]}, threshold=0)
    assert [person.second for person in found] == [1] * 40 + [3]


def test_what_cannot_be_used_is_one_line(folder, models, tmp_path):
    film, model = folder / "film.mp4", models["baseline"]
    with pytest.raises(
        DataError, match=r"film\.mp4: no box is at a second of the film; seconds of the boxes: 902 to 904"
    ):
        model.detect(film, {902: BOXES[1], 904: BOXES[1]})
    with pytest.raises(DataError, match=r"boxes of second 1: expected fractions of the frame in \[0, 1\], found"):
        model.detect(film, {1: [(10, 20, 30, 40)]})
    with pytest.raises(DataError, match=r"boxes of second 1: expected x1 < x2"):
        model.detect(film, {1: [(0.5, 0.2, 0.5, 0.4)]})
    with pytest.raises(DataError, match=r"boxes of second 1: found an array of shape \[1, 3\]"):
        model.detect(film, {1: [(0.5, 0.2, 0.5)]})
    with pytest.raises(ConfigError, match="threshold: expected a probability"):
        model.detect(film, threshold=3)
    with pytest.raises(ConfigError, match="batch_size: expected at least 1"):
        model.detect(film, batch_size=0)
    with pytest.raises(decode.VideoError, match=r"absent\.mp4: missing"):
        models["max"].detect(tmp_path / "absent.mp4")


def test_the_bank_needs_the_detector_of_training(folder, tmp_path):
    save(tmp_path / "other", small("none"), 5)
    film = folder / "film.mp4"
    with pytest.raises(FeatureError, match=r"other: other weights than those that made the bank of training"):
        inference.load(folder / "max", video_checkpoint=tmp_path / "other").detect(film)
    save(tmp_path / "converted", small("max"), 1)
    with pytest.raises(FeatureError, match=r"config\.bank\.source: names no checkpoint"):
        inference.load(tmp_path / "converted").detect(film)
    found = inference.load(tmp_path / "converted", video_checkpoint=folder / "baseline").detect(film, threshold=0)
    same = inference.load(folder / "max").detect(film, threshold=0)
    assert found == same


def test_actions_of_a_subset_keep_their_ids(folder, tmp_path):
    """A model of three actions with ids 3, 7 and 12 has them in columns 1 to 3, though '12' is the first as text."""
    config = small("none")
    config.data.actions = ConfigDict({"3": "rest", "7": "move", "12": "turn"})
    save(tmp_path, config, 0)
    model = inference.load(tmp_path)
    (row,) = model.score(folder / "film.mp4", {2: BOXES[2]})
    (person,) = model.detect(folder / "film.mp4", {2: BOXES[2]}, threshold=0)
    assert {action.id: action.score for action in person.actions} == dict(
        zip((3, 7, 12), row.scores[0, 1:], strict=True)
    )
    (tmp_path / "boxes.csv").write_text("film,2,0.2,0.1,0.5,0.9")
    text = model.predict([{"video": folder / "film.mp4"}], tmp_path / "boxes.csv").files["detections.csv"]
    assert [line.split(",")[6] for line in text.splitlines()] == ["3", "7", "12"]


def test_the_command_writes_lists_csv_and_pictures(folder, tmp_path, command):
    film = folder / "film.mp4"
    words = ["--checkpoint", folder / "max", "--video", film, "--threshold", "0"]
    drawn = ["--figure", tmp_path / "a.png", "--video_output", tmp_path / "a.mp4"]
    said, error = command("predict", *words, "--boxes", folder / "boxes.csv", "--output", tmp_path, *drawn)
    assert not error
    assert said.splitlines()[0].startswith("     1 s  0.10 0.10 0.40 0.90  ")
    assert decode.probe(tmp_path / "a.mp4").height == 256
    assert (tmp_path / "a.png").stat().st_size > 1000
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(line["video"], line["second"], len(line["people"])) for line in lines] == [
        ("film.mp4", 1, 2),
        ("film.mp4", 2, 1),
        ("film.mp4", 4, 1),
    ]
    with open(tmp_path / "detections.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 4 * 3
    assert rows[0][:2] == ["film", "1"]
    said, error = command("predict", *words[:2], "--video", folder / "empty.mp4")
    assert not error
    assert "3 of 3 seconds: opencv found nobody, the whole frame was used" in said


def test_the_command_on_a_list_of_films(folder, tmp_path, command):
    (tmp_path / "films.txt").write_text(f"{folder / 'film.mp4'}\nabsent.mp4\n")
    words = ["--checkpoint", folder / "baseline", "--detector", "frame"]
    said, error = command("predict", *words, "--filelist", tmp_path / "films.txt", "--output", tmp_path / "out")
    assert not error
    assert "6 seconds of 1 films" in said
    assert "absent.mp4,missing," in (tmp_path / "out" / "skipped.csv").read_text()
    _, error = command("predict", *words, "--video", folder / "film.mp4", "--query", "x")
    assert "baseline: lfb finds people and their actions, not moments; leave out --query" in error
    _, error = command("predict", *words, "--video", tmp_path / "absent.mp4")
    assert "absent.mp4: missing" in error
    _, error = command("predict", *words, "--filelist", tmp_path / "films.txt", "--video_output", tmp_path / "a.mp4")
    assert "--video_output: draws one --video" in error

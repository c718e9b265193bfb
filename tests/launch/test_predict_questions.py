"""Search and answers on the command line."""

import json

import matplotlib.image
import pytest
from snps3_runs import ANSWERS, TEXTS, make_runs, save

from vlm_jax import config as configs
from vlm_jax import inference


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    return make_runs(tmp_path_factory.mktemp("snps3"), root)


def test_videos_are_searched_drawn_and_kept_in_an_index(folder, tmp_path, command):
    words = ["--checkpoint", folder / "retrieval", "--search", TEXTS[0], "--search", TEXTS[1], "--top_k", 2]
    files = ["--figure", tmp_path / "a.png", "--output", tmp_path, "--index", tmp_path / "index.npz"]
    said, error = command("predict", *words, "--videos", folder / "videos", *files)
    assert not error
    found = inference.load(folder / "retrieval").search(TEXTS[:2], folder / "videos", 2)
    best = found[0][0]
    expected = f"  1. {best.video}   level_1 {best.levels['level_1']:.3f}  level_2 {best.levels['level_2']:.3f}"
    assert said.splitlines()[:2] == [TEXTS[0], expected]
    assert matplotlib.image.imread(tmp_path / "a.png").shape[1] == 2100
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [[match["video"] for match in line["best"]] for line in lines] == [[m.video for m in own] for own in found]
    again, error = command("predict", *words, "--index", tmp_path / "index.npz")
    assert (again.splitlines(), error) == (said.splitlines()[:6], "")


def test_questions_are_answered(folder, tmp_path, command):
    film = folder / "videos/bunny.mp4"
    words = ["--video", film, "--question", "what colour is it?"]
    said, error = command("predict", "--checkpoint", folder / "question_answering", *words, "--top_k", 2)
    assert not error
    answers = inference.load(folder / "question_answering").answer(film, "what colour is it?", top_k=2)
    assert said.splitlines() == [
        "what colour is it?",
        *(f"  {place}. {answer.text}   {answer.score:.3f}" for place, answer in enumerate(answers, start=1)),
    ]
    options = [word for text in TEXTS for word in ("--option", text)]
    run = ["--checkpoint", folder / "retrieval", *words]
    said, error = command("predict", *run, *options, "--output", tmp_path / "one")
    assert not error
    (line,) = (json.loads(line) for line in (tmp_path / "one/predictions.jsonl").read_text().splitlines())
    assert said.splitlines()[1].startswith(f"  1. {line['best'][0]['answer']}   ")
    assert sorted(each["answer"] for each in line["best"]) == sorted(TEXTS)


def test_a_list_of_questions(folder, tmp_path, command):
    rows = [
        {"video": "bunny.mp4", "question": "what?", "options": TEXTS, "qid": 7},
        {"video": "chaplin.mkv", "options": TEXTS[:2]},
        {"video": "bunny.mp4", "options": "red"},
        {"video": "bunny.mp4", "options": TEXTS, "start": "soon"},
        {"video": "absent.mp4", "options": TEXTS},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--checkpoint", folder / "multiple_choice", "--filelist", tmp_path / "asked.jsonl"]
    said, error = command("predict", *words, "--videos", folder / "videos", "--output", tmp_path / "found")
    assert not error
    assert "2 questions about 2 videos" in said
    lines = [json.loads(line) for line in (tmp_path / "found/predictions.jsonl").read_text().splitlines()]
    assert [line["qid"] for line in lines] == ["7", "chaplin.mkv#0"]
    assert all(line["best"][0]["answer"] == TEXTS[line["prediction"]] for line in lines)
    skipped = (tmp_path / "found/skipped.csv").read_text()
    for reason in ("options are no list of texts", "start or end is no time in seconds", "video is missing"):
        assert reason in skipped


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video", "FILM", "--question", "what?"], "a run of retrieval has no vocabulary of answers; give options"),
        (["--video", "FILM"], "--video and --question belong together"),
        (["--video", "FILM", "--query", "x"], "retrieval: snps3 finds no moments; leave out --query"),
        (["--video", "absent.mp4", "--option", "a"], "nothing can be answered; video is missing: absent.mp4: missing"),
        (["--video", "FILM", "--option", " "], "nothing can be answered; cannot be asked: options: text 1 is empty"),
        (["--search", "a dog"], "--search needs --videos"),
        (["--search", "", "--videos", "FOLDER"], "search: text 1 is empty"),
        (["--search", "a", "--videos", "absent.mp4"], "none of 1 videos can be read; absent.mp4: missing"),
        (["--video", "FILM", "--question", "a", "--index", "a.npz"], "--index belongs to --search"),
        (["--video", "FILM", "--question", "a", "--videos", "FOLDER"], "--videos: expected --search"),
        (["--video", "FILM", "--option", "a", "--boxes", "b.csv"], "--boxes: "),
    ],
)
def test_mistakes_are_one_line(folder, command, words, message):
    places = {"FILM": folder / "videos/bunny.mp4", "FOLDER": folder / "videos"}
    _, error = command("predict", "--checkpoint", folder / "retrieval", *(places.get(word, word) for word in words))
    assert message in error


def test_other_systems_say_what_they_cannot_do(folder, root, tmp_path, command):
    config = configs.load(str(root / "configs/milnce_howto100m.py:smoke"))
    config.model.blocks, config.text.vocabulary = ("3b",), ""
    save(tmp_path / "embedding", config, 1)
    run = ["--checkpoint", tmp_path / "embedding"]
    _, error = command("predict", *run, "--video", folder / "videos/bunny.mp4", "--question", "what?")
    assert "embedding: milnce answers no questions; leave out --question and --option" in error
    _, error = command("predict", *run, "--search", ANSWERS[0], "--videos", folder / "videos", "--index", "a.npz")
    assert "--index: " in error
    _, error = command("predict", *run, "--video", folder / "videos/bunny.mp4", "--query", "a")
    assert "milnce finds no moments; give --search" in error

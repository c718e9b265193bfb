"""Evaluation of SNP-S3 from prepared films equals the search and the answers on the same files."""

import json

import matplotlib.image
import numpy as np
import pytest
from snps3_runs import ANSWERS, TEXTS, make_runs

from data_prep.snps3 import prepare
from vlm_jax import inference
from vlm_jax.systems.snps3.config import evaluator

FILMS = ("bunny.mp4", "chaplin.mkv", "still.mp4")
TRUTH = [0, 2, 1]
CONFIG = """
from pathlib import Path
from ml_collections import ConfigDict
from snps3_runs import small

def get_config(variant):
    config = small(Path({folder!r}), {head!r})
    config.evaluation, config.evaluate.batch_size = ConfigDict({{"test": {entry!r}}}), 2
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    made = make_runs(tmp_path_factory.mktemp("snps3"), root)
    names = list(zip(FILMS, TEXTS, strict=True))
    rows = {
        "retrieval": [{"clip_name": film, "caption": text, "sen_id": n} for n, (film, text) in enumerate(names)]
        + [{"clip_name": FILMS[2], "caption": TEXTS[0], "sen_id": 3}],
        "answers": [
            {"clip_name": film, "caption": "what colour?", "label": label}
            for film, label in zip(FILMS, ["red", "zebra", "blue"], strict=True)
        ],
        "choices": [
            {"clip_name": film, "qid": f"q{n}", "title": "which?", "answer": str(TRUTH[n]), "options": TEXTS}
            for n, film in enumerate(FILMS)
        ],
    }
    rows["predict"] = [{key: value for key, value in row.items() if key != "answer"} for row in rows["choices"]]
    uses = {"retrieval": "captions", "answers": "questions", "choices": "choices", "predict": "choices"}
    for name, own in rows.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        words = ["--annotations", made / f"{name}.jsonl", "--media", made / "videos", "--output", made / "data" / name]
        answers = ["--answers", made / "answers.json"] if name == "answers" else []
        kind = ["--use", uses[name], "--split", "test", "--format", "video", "--num_shards", 2]
        prepare.main(["items", *map(str, [*words, *kind, *answers])])
    return made


@pytest.fixture
def evaluate(folder, command):
    """Return a function that evaluates a run by an evaluator, and returns its results and its lines."""

    def run(head, kind, data, **changes):
        entry = {**evaluator(kind, str(folder / "data" / data)), **changes}
        own_head = "multiple_choice" if kind == "choices" else head
        (folder / "config.py").write_text(CONFIG.format(folder=str(folder), head=own_head, entry=entry))
        _, error = command("evaluate", "--workdir", folder / head, "--config", folder / "config.py", "--overwrite")
        assert not error
        results = folder / head / "results"
        lines = [json.loads(line) for line in (results / "test.jsonl").read_text().splitlines()]
        return json.loads((results / "test.json").read_text())["metrics"], lines

    return run


def test_retrieval_is_the_search_among_the_files(folder, evaluate, command, tmp_path):
    metrics, lines = evaluate("retrieval", "retrieval", "retrieval", row_block=2, column_block=2)
    found = inference.load(folder / "retrieval").search(TEXTS, folder / "videos", 3)
    assert [line["caption"] for line in lines] == TEXTS
    assert [match["video"] for match in lines[0]["truth"]] == ["bunny.mp4", "still.mp4"]
    for line, own in zip(lines, found, strict=True):
        assert [match["video"] for match in line["best"]] == [match.video for match in own]
        for match, each in zip(line["best"], own, strict=True):
            np.testing.assert_allclose([match["level_1"], match["level_2"]], list(each.levels.values()), rtol=2e-3)
    assert metrics["l2_simi_t2v-r@1"] == pytest.approx(np.mean([line["ranks"]["level_2"] == 1 for line in lines]))
    assert metrics["l1_simi_v2t-r@5"] == 1
    drawn = ["--results", folder / "retrieval/results/test.jsonl", "--videos", folder / "videos"]
    said, error = command("figures", "retrieval", *drawn, "--output", tmp_path / "a.png", "--queries", 2)
    assert (said, error) == (f"{tmp_path / 'a.png'}: 2 of 3 queries\n", "")
    assert matplotlib.image.imread(tmp_path / "a.png").shape[1] == 2100


def scored(command, folder, head, form, annotations):
    """Metrics that the predictions have when they are scored by themselves."""
    words = ["--predictions", folder / head / "results/test.jsonl", "--annotations", folder / f"{annotations}.jsonl"]
    said, error = command("score", *words, "--format", form)
    return {name: float(value) for name, value in map(str.split, said.splitlines())}, error


def test_answers_are_those_about_the_files(folder, evaluate, command):
    metrics, lines = evaluate("question_answering", "answers", "answers")
    model = inference.load(folder / "question_answering")
    for line, film in zip(lines, FILMS, strict=True):
        found = model.answer(folder / "videos" / film, "what colour?")
        assert [each["answer"] for each in line["best"]] == [answer.text for answer in found]
        np.testing.assert_allclose([each["score"] for each in line["best"]], [a.score for a in found], rtol=2e-3)
    assert [line["truth"] for line in lines] == ["red", "zebra", "blue"]
    right = np.mean([line["prediction"] == line["truth"] for line in lines])
    counts = {"questions": 3, "outside_vocabulary": 1}
    assert metrics == {"accuracy": round(right, 4), "chance/accuracy": pytest.approx(1 / 3), **counts}
    assert {line["prediction"] for line in lines} <= set(ANSWERS)
    found, _ = scored(command, folder, "question_answering", "questions", "answers")
    expected = {"accuracy": pytest.approx(100 * right, abs=0.01), "questions": 3}
    assert found == {**expected, "without_predictions": 0, "annotations_left_out": 0}


@pytest.mark.parametrize("data", ["choices", "predict"])
def test_a_checkpoint_of_retrieval_chooses(folder, evaluate, data, command):
    """Without truth there is no accuracy, but the predictions are the same."""
    metrics, lines = evaluate("retrieval", "choices", data)
    model = inference.load(folder / "retrieval")
    for line, film in zip(lines, FILMS, strict=True):
        found = model.answer(folder / "videos" / film, "which?", TEXTS)
        assert (line["video"], line["question"], line["answer"]) == (film, "which?", found[0].text)
        np.testing.assert_allclose(
            sorted(each["score"] for each in line["options"]), sorted(a.score for a in found), rtol=2e-3, atol=1e-4
        )
    expected = {"questions": 3}
    if data == "choices":
        expected["accuracy"] = round(
            np.mean([line["prediction"] == n for line, n in zip(lines, TRUTH, strict=True)]), 4
        )
        expected["chance/accuracy"] = pytest.approx(1 / len(TEXTS))
    assert metrics == expected
    found, error = scored(command, folder, "retrieval", "choices", data)
    if data == "choices":
        assert found["accuracy"] == pytest.approx(100 * expected["accuracy"], abs=0.01)
    else:
        assert "no prediction is of a question of" in error

"""launch/predict.py for GroundNLQ: questions of prepared sets, raw ones, and what cannot be answered."""

import csv
import json

import jax
import nlq_files
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.task import get_task
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.checkpoint import restore_variables, save_variables

CONFIG = "configs/groundnlq_scratch.py:smoke"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    """Prepared data and a checkpoint of random numbers."""
    made = nlq_files.prepare(nlq_files.write(tmp_path_factory.mktemp("predict"), clips=4))
    config = nlq_files.configure(configs.load(str(root / CONFIG)), made)
    rng = np.random.default_rng(3)
    shapes = get_task(config).abstract_variables()
    save_variables(made / "model", jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes), {})
    configs.write(config, made / "model" / "config.json")
    return made


def words(folder, tmp_path, content, *more):
    (tmp_path / "list").write_text(content if isinstance(content, str) else json.dumps(content))
    paths = ["--checkpoint", folder / "model", "--filelist", tmp_path / "list", "--output", tmp_path / "out"]
    return [*paths, *more]


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]


def skipped(tmp_path):
    with open(tmp_path / "out" / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def test_clips_of_a_list_are_answered_as_in_evaluation(folder, tmp_path, command, root):
    """The test split has no answers; the challenge's file comes out of both."""
    said, error = command("predict", *words(folder, tmp_path, "clip3\nabsent\n"))
    assert not error
    assert "3 sentences of 1 videos" in said
    assert skipped(tmp_path) == {"absent": "clip without questions"}
    config = nlq_files.configure(configs.load(str(root / CONFIG)), folder)
    task = get_task(config)
    variables = restore_variables(folder / "model", task.abstract_variables())
    found = evaluate.run(task.evaluators["test"], variables, sharding.make_mesh(config.mesh), 4)
    evaluate.write_results(tmp_path / "results", "test", found, task.evaluators["test"], {})
    evaluated = [json.loads(line) for line in (tmp_path / "results" / "test_queries.jsonl").read_text().splitlines()]
    for line, other in zip(lines(tmp_path), evaluated, strict=True):
        assert (line["qid"], line["video"], line["query"]) == (other["qid"], "clip3", other["query"])
        np.testing.assert_allclose(line["seconds"], other["seconds"], rtol=1e-4, atol=1e-4)
    ours = json.loads((tmp_path / "out" / "nlq_submission.json").read_text())
    theirs = json.loads((tmp_path / "results" / "test_submission.json").read_text())
    assert ours.keys() == theirs.keys()
    assert [entry["query_idx"] for entry in ours["results"]] == [0, 2, 3]
    assert [entry["query_idx"] for entry in theirs["results"]] == [0, 2, 3]


def test_questions_with_words_of_their_own(folder, tmp_path, command):
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=(3, nlq_files.WORD)) for name in "abc"}
    vectors |= {"d": np.full((2, nlq_files.WORD), np.nan), "e": rng.normal(size=(7, nlq_files.WORD))}
    np.savez(tmp_path / "v.npz", **vectors)
    clips = {"a": "clip0", "b": "absent", "c": "clip1", "d": "clip0", "e": "clip0", "f": "clip0"}
    asked = [{"video": clip, "query": f"what is {name}", "qid": name} for name, clip in clips.items()]
    _, error = command("predict", *words(folder, tmp_path, asked, "--vectors", tmp_path / "v.npz", "--top_k", 2))
    assert not error
    found = lines(tmp_path)
    assert [(line["qid"], line["video"]) for line in found] == [("a", "clip0"), ("c", "clip1")]
    assert all(1 <= len(line["seconds"]) <= 2 for line in found)
    assert skipped(tmp_path) == {
        "b": "clip without features",
        "d": "words' features not finite",
        "e": "too few or too many words",
        "f": "question without words' features",
    }
    assert not (tmp_path / "out" / "nlq_submission.json").exists(), "names that are not the challenge's"


def test_mistakes_are_one_line(folder, tmp_path, command):
    asked = [{"video": "clip0", "query": "x", "qid": "a"}]
    np.savez(tmp_path / "v.npz", a=np.ones((3, 5)))
    _, error = command("predict", *words(folder, tmp_path, asked, "--vectors", tmp_path / "v.npz"))
    assert f"question a: features of words of shape [3, 5], the model takes [L, {nlq_files.WORD}]" in error
    _, error = command("predict", *words(folder, tmp_path, ""))
    assert "an empty list" in error
    _, error = command("predict", *words(folder, tmp_path, "clip0", "--config.data.video_source=ours"))
    assert error.endswith("prepared with video_source = '', the config asks for 'ours'")
    _, error = command("predict", *words(folder, tmp_path, "absent"))
    assert "nothing can be predicted; absent: clip without questions" in error

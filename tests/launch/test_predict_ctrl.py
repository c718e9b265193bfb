"""launch/predict.py: moments without ground truth, and what cannot be answered."""

import csv
import dataclasses
import json
import pickle

import ctrl_files
import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import text_features as text_vectors
from vlm_jax.task import get_task
from vlm_jax.text_features import TextSettings, TextVectors
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.checkpoint import restore_variables, save_variables

CONFIG = "configs/ctrl_tacos.py:smoke"
VIDEO = "s1-d_1.avi"
"""The only one of the test split."""


def save(folder, config):
    """A checkpoint of random numbers."""
    rng = np.random.default_rng(3)
    shapes = get_task(config).abstract_variables()
    save_variables(folder, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes), {})
    configs.write(config, folder / "config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    """Prepared data, a checkpoint of CTRL, one of a text tower, and one of CTRL on that tower's sentences."""
    made = ctrl_files.prepare(ctrl_files.write(tmp_path_factory.mktemp("predict"), videos=2))
    save(made / "ctrl", configs.load(str(root / CONFIG)))
    np.save(made / "words.npy", np.array(["she", "sings", "leaves", *(f"<unused {n}>" for n in range(96))]))
    words = [f"--config.text.vocabulary={made / 'words.npy'}"]
    save(made / "milnce", configs.load(str(root / "configs/milnce_howto100m.py:smoke"), words))
    return made


def words(folder, tmp_path, content, *more, checkpoint="ctrl"):
    (tmp_path / "list").write_text(content if isinstance(content, str) else json.dumps(content))
    data = [f"--config.predict.windows={folder / 'windows'}"]
    data += [f"--config.predict.queries={folder / 'queries'}", "--checkpoint", folder / checkpoint]
    return [*data, "--filelist", tmp_path / "list", "--output", tmp_path / "out", *more]


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]


def skipped(tmp_path):
    with open(tmp_path / "out" / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def test_videos_of_a_list_are_answered_as_in_evaluation(folder, tmp_path, command, root):
    said, error = command("predict", *words(folder, tmp_path, f"{VIDEO}\nabsent.avi\n", "--top_k", 3))
    assert not error
    assert "12 sentences of 1 videos" in said
    assert skipped(tmp_path) == {"absent.avi": "video without sentences"}
    config = configs.load(str(root / CONFIG))
    made = {"windows": str(folder / "windows"), "queries": str(folder / "queries"), "split": "test"}
    made |= {"thresholds": (0.5,), "ks": (1, 3), "count_videos_without_windows": False}
    with config.unlocked():
        config.moments = configs.ConfigDict({"things": made})
    task = get_task(config)
    variables = restore_variables(folder / "ctrl", task.abstract_variables())
    found = evaluate.run(task.evaluators["things"], variables, sharding.make_mesh(config.mesh), 16)
    evaluate.write_results(tmp_path / "results", "things", found, task.evaluators["things"], {})
    ours = json.loads((tmp_path / "out" / "TALL_infer_res_.json").read_text())
    theirs = json.loads((tmp_path / "results" / "things_predictions.json").read_text())
    assert ours.keys() == theirs.keys() == {"version", "results", "external_data"}
    assert [entry[0] for entry in ours["results"][VIDEO]] == list(range(12))
    np.testing.assert_allclose(ours["results"][VIDEO], theirs["results"][VIDEO], rtol=1e-5)
    evaluated = [json.loads(line) for line in (tmp_path / "results" / "things_queries.jsonl").read_text().splitlines()]
    for line, other in zip(lines(tmp_path), evaluated, strict=True):
        assert (line["qid"], line["video"]) == (other["qid"], VIDEO)
        assert 1 <= len(line["seconds"]) <= 3
        np.testing.assert_allclose(line["frames"], other["frames"], rtol=1e-5)
        np.testing.assert_allclose(np.array(line["seconds"])[:, :2] * 20, np.array(line["frames"])[:, :2])


def test_sentences_with_vectors_of_their_own(folder, tmp_path, command):
    """By qid, in a file; windows of a video that no query set knows; what is missing is listed."""
    known = pickle.loads((folder / "test.pkl").read_bytes())[0][1][0][: ctrl_files.VECTOR]
    bad = {"d": np.full(ctrl_files.VECTOR, np.nan)}
    np.savez(tmp_path / "v.npz", a=known, b=known, c=known, **bad)
    asked = [{"video": VIDEO, "sentence": "it shows", "qid": "a"}, {"video": "absent.avi", "query": "x", "qid": "b"}]
    asked += [
        {"video": VIDEO, "query": "again", "qid": "a"},
        {"query": "x"},
        {"video": VIDEO, "query": "n", "qid": "d"},
    ]
    text = "\n".join(json.dumps(entry) for entry in [*asked, {"video": VIDEO, "query": "unknown", "qid": "e"}])
    _, error = command("predict", *words(folder, tmp_path, text, "--vectors", tmp_path / "v.npz"))
    assert not error
    (line,) = lines(tmp_path)
    assert (line["qid"], line["query"], len(line["seconds"])) == ("a", "it shows", 5)
    assert skipped(tmp_path) == {
        "entry 3": "duplicate id",
        "entry 4": "no video",
        "d": "vector not finite",
        "e": "sentence without a vector",
        "absent.avi": "video without windows",
    }
    assert list(json.loads((tmp_path / "out" / "TALL_infer_res_.json").read_text())["results"]) == [VIDEO]
    command("predict", *words(folder, tmp_path, [VIDEO]))
    first = lines(tmp_path)[0]
    np.testing.assert_allclose(first["frames"], line["frames"], rtol=1e-5)
    assert not (tmp_path / "out" / "skipped.csv").exists(), "of the run before"


def test_raw_sentences_by_a_text_tower(folder, tmp_path, command, root):
    """Encoded on the spot, by what the run was trained with, or beforehand: the same answers; no other tower serves."""
    queries = [
        {"qid": str(n), "video": VIDEO, "query": text} for n, text in enumerate(("she sings", "zzz", "she leaves"))
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    made = ["--checkpoint", folder / "milnce", "--queries", tmp_path / "queries.jsonl"]
    said, error = command("extract_text_features", *made, "--output", tmp_path / "v.npz")
    assert not error
    vectors = TextVectors(tmp_path / "v.npz")
    assert f"2 sentences, 32 numbers each; source {vectors.source}" in said
    assert "1 x no known word" in said
    config = configs.load(str(root / CONFIG), ["--config.model.sentence_dim=32"])
    made = {"text_source": vectors.source, "text_features": dataclasses.asdict(vectors.settings)}
    configs.set_keys(config, {f"data.{key}": value for key, value in made.items()})
    save(folder / "raw", config)
    _, error = command("predict", *words(folder, tmp_path, queries, checkpoint="raw"))
    assert not error
    on_the_spot = lines(tmp_path)
    assert [line["query"] for line in on_the_spot] == ["she sings", "she leaves"]
    assert skipped(tmp_path) == {"1": "no known word"}
    _, error = command(
        "predict", *words(folder, tmp_path, queries[::2], checkpoint="raw"), "--vectors", tmp_path / "v.npz"
    )
    assert not error
    for line, other in zip(lines(tmp_path), on_the_spot, strict=True):
        np.testing.assert_allclose(line["seconds"], other["seconds"], rtol=1e-5)

    changed = TextSettings(**{**vectors.settings.__dict__, "fingerprint": "0" * 64})
    text_vectors.save(tmp_path / "other.npz", {"0": np.ones(32)}, changed)
    asked = words(folder, tmp_path, queries[:1], checkpoint="raw")
    _, error = command("predict", *asked, "--vectors", tmp_path / "other.npz")
    assert "sentence 0: its vector was made with 'sentence:as_is:30:0000" in error
    assert "(config.data.text_source)" in error
    text_vectors.save(tmp_path / "wide.npz", {"0": np.ones(7)}, vectors.settings)
    _, error = command("predict", *asked, "--vectors", tmp_path / "wide.npz")
    assert "sentence 0: a vector of shape [7], the model takes [32]" in error
    _, error = command("predict", *words(folder, tmp_path, queries[1:2], checkpoint="raw"))
    assert "none of 1 sentences has a word of this list" in error
    _, error = command("predict", *asked, "--text_checkpoint", folder / "ctrl")
    assert "a checkpoint of ctrl makes no features of text" in error


def test_words_have_a_row_of_the_table_each(folder, tmp_path, command):
    (tmp_path / "queries.jsonl").write_text(json.dumps({"qid": "q", "video": "v", "query": "she never leaves"}))
    made = ["--checkpoint", folder / "milnce", "--queries", tmp_path / "queries.jsonl", "--layer", "words"]
    said, error = command("extract_text_features", *made, "--output", tmp_path / "v.npz")
    assert not error
    assert "1 sentences, 300 numbers each word" in said
    config = configs.find(folder / "milnce")
    table = restore_variables(folder / "milnce", get_task(config).abstract_variables())["frozen"]["text"]["word_embd"]
    np.testing.assert_array_equal(TextVectors(tmp_path / "v.npz")["q"], np.asarray(table)[[1, 3]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "an empty list; expected videos, one a line"),
        ("[]", "an empty list"),
        ("[1, {}]", "an empty list; expected videos, one a line, or JSON of {video, query} (entry 1: no video)"),
        ("[half", "neither JSON nor JSONL"),
        ("absent.avi", "nothing can be predicted; absent.avi: video without sentences"),
    ],
)
def test_lists_that_ask_nothing_are_one_line(folder, tmp_path, command, content, message):
    _, error = command("predict", *words(folder, tmp_path, content))
    assert message in error
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_one_line(folder, tmp_path, command):
    asked = words(folder, tmp_path, VIDEO)
    assert "--top_k: expected at least 1, found 0" in command("predict", *asked, "--top_k", 0)[1]
    changed = [word if word != tmp_path / "list" else tmp_path / "absent" for word in asked]
    assert "absent: No such file" in command("predict", *changed)[1]
    assert "released:tall: not one of" in command("predict", *asked, "--checkpoint", "released:tall")[1]
    changed = [word for word in asked if not str(word).startswith("--config.")]
    changed[changed.index(folder / "ctrl")] = folder / "milnce"
    assert "milnce finds no moments" in command("predict", *changed)[1]

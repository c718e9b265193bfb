"""Retrieval at two levels against a double loop, answers and choices, on encoders that are plain formulas."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError, DataError
from vlm_jax.metrics.retrieval import ranking_metrics
from vlm_jax.systems.snps3 import matching
from vlm_jax.systems.snps3.annotations import Line, group_parts, single_lines
from vlm_jax.systems.snps3.answers import write as write_answers
from vlm_jax.systems.snps3.config import default_config, evaluator
from vlm_jax.systems.snps3.evaluation import make_evaluators, summarize_retrieval
from vlm_jax.systems.snps3.table import make_table, table_path, write_table
from vlm_jax.text.vocabulary import word_pieces
from vlm_jax.train import evaluate, sharding

WORDS, DIM, CLIPS, ANSWERS = 40, 6, 3, 7
VARIABLES = {"params": {"words": np.random.default_rng(0).normal(size=(WORDS, DIM)).astype(np.float32)}}


def unit(array):
    return array / jnp.linalg.norm(array, axis=-1, keepdims=True)


def sentence(variables, batch):
    return (variables["params"]["words"][batch["text"]] * batch["text_mask"][..., None]).sum(-2)


def encode_video(variables, batch):
    del variables
    tokens = batch["video"].astype(jnp.float32)
    return {"clips": unit(tokens), "tokens": tokens}


def match(variables, batch):
    return {"scores": jnp.tanh(sentence(variables, batch)[:, None] * batch["tokens"]).sum((1, 2))}


def answer(variables, batch):
    mixed = sentence(variables, batch) * batch["tokens"].mean(1)
    return {"scores": mixed @ variables["params"]["words"][:ANSWERS].T}


def choose(variables, batch):
    count, options, length = batch["text"].shape
    flat = {name: batch[name].reshape(-1, length) for name in ("text", "text_mask")}
    scores = match(variables, {**flat, "tokens": jnp.repeat(batch["tokens"], options, 0)})["scores"]
    return {"scores": jnp.where(batch["option_mask"], scores.reshape(count, options), -1e9)}


ENCODERS = {
    "video": encode_video,
    "text": lambda variables, batch: {"text": unit(sentence(variables, batch))},
    "match": match,
    "answer": answer,
    "choose": choose,
}


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]).reshape(count, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


class Batches:
    """Pipeline of given arrays, one row per item."""

    def __init__(self, arrays, shard):
        self.arrays, self.size = arrays, shard.batch_size

    def epoch_examples(self):
        return len(self.arrays["video"])

    def __iter__(self):
        count = self.epoch_examples()
        for begin in range(0, count, self.size):
            index = begin + np.arange(self.size)
            rows = np.minimum(index, count - 1)
            marks = {"mask": (index < count).astype(np.int32), "index": index.astype(np.int32)}
            yield {name: array[rows] for name, array in self.arrays.items()} | marks


def evaluated(made, arrays, count=1, folder=None):
    """The results of an evaluator on items that are given instead of read; its files go to the folder."""
    made = dataclasses.replace(made, data=lambda shard: Batches(arrays, shard))
    found = evaluate.run(made, VARIABLES, mesh_of(count), 4)
    if folder:
        evaluate.write_results(folder, "test", found, made, {"step": 0})
        return found, [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    return found


def line(number, video, text, **fields):
    return Line(number, video, "video", None, None, text, number, number, **fields)


def prepared(folder, lines, vocabulary=()):
    """A config with an evaluator of a table of these lines; one item per line."""
    items = single_lines(lines)
    parts = dict.fromkeys(item.part for item in group_parts(lines))
    table = make_table(items, {part: (number, 8, 8) for number, part in enumerate(parts)}, vocabulary, len(vocabulary))
    (folder / "data").mkdir(exist_ok=True)
    write_table(table_path(folder / "data", "test"), table)
    pieces = word_pieces([own.text for own in lines] + [o for own in lines for o in own.options], WORDS)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = default_config()
    config.text.vocabulary, config.text.length = str(folder / "vocab.txt"), 8
    config.text.vocabulary_size = len(pieces)
    config.head = "retrieval"
    return config, table


def with_evaluator(config, folder, kind, **changes):
    config.evaluation = ConfigDict({"test": {**evaluator(kind, str(folder / "data")), **changes}})
    return make_evaluators(config, ENCODERS)["test"]


def texts_of(rng, count):
    ids = rng.integers(0, WORDS, (count, 5)).astype(np.int32)
    return {"text": ids, "text_mask": (np.arange(5) < rng.integers(1, 6, (count, 1))).astype(np.int32)}


@pytest.mark.parametrize(("count", "blocks"), [(1, (4, 3)), (1, (64, 64)), (2, (3, 5)), (4, (1, 2))])
def test_all_pairs_are_those_of_a_double_loop(count, blocks, monkeypatch):
    """11 texts and 7 videos, which no block divides."""
    monkeypatch.setattr(matching, "EMBEDDINGS", blocks[0] + 1)
    texts, videos = pairs()
    sizes = {"row_block": blocks[0], "column_block": blocks[1]}
    second = matching.level_2(ENCODERS)
    found = matching.score_pairs(ENCODERS, second, VARIABLES, texts, videos, mesh_of(count), **sizes)
    for row in range(11):
        own = {name: array[row : row + 1] for name, array in texts.items()}
        embedding = np.asarray(ENCODERS["text"](VARIABLES, own)["text"][0], np.float64)
        for column in range(7):
            first = np.log(np.exp(videos["clips"][column].astype(np.float64) @ embedding).sum())
            scores = match(VARIABLES, {**own, "tokens": videos["tokens"][column : column + 1]})["scores"]
            np.testing.assert_allclose(found["level_1"][row, column], first, rtol=1e-5)
            np.testing.assert_allclose(found["level_2"][row, column], scores[0], rtol=1e-4, atol=1e-5)
    quick = matching.score_pairs(ENCODERS, None, VARIABLES, texts, videos, **sizes)
    assert quick.keys() == {"level_1"}
    np.testing.assert_allclose(quick["level_1"], found["level_1"], rtol=1e-6)


def pairs():
    """11 texts and 7 encoded videos."""
    rng = np.random.default_rng(1)
    texts, video = texts_of(rng, 11), rng.normal(size=(7, CLIPS, DIM)).astype(np.float32)
    return texts, jax.device_get(encode_video({}, {"video": video}))


def main(folder):
    """One of two processes with two devices each."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_default_matmul_precision", "highest")
    sharding.initialize()
    matching.EMBEDDINGS = 5
    sizes = {"row_block": 3, "column_block": 4}
    mesh = sharding.make_mesh(default_config().mesh)
    assert (jax.process_count(), mesh.shape["data"]) == (2, 4)
    embeddings = matching.encode_texts(ENCODERS["text"], VARIABLES, pairs()[0], mesh, 5)
    found = matching.score_pairs(ENCODERS, matching.level_2(ENCODERS), VARIABLES, *pairs(), mesh, **sizes)
    assert [scores is None for scores in found.values()] == [jax.process_index() > 0] * 2
    np.savez(folder / f"{jax.process_index()}.npz", embeddings=embeddings, **(found if not jax.process_index() else {}))


def test_two_processes_share_the_scores(tmp_path, root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "VLM_COORDINATOR": f"127.0.0.1:{port}"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            cwd=root,
            env={**environment, "VLM_NUM_PROCESSES": "2", "VLM_PROCESS_ID": str(number)},
        )
        for number in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    first, second = (np.load(tmp_path / f"{number}.npz") for number in range(2))
    sizes = {"row_block": 64, "column_block": 64}
    alone = matching.score_pairs(ENCODERS, matching.level_2(ENCODERS), VARIABLES, *pairs(), **sizes)
    for level, scores in alone.items():
        np.testing.assert_allclose(first[level], scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(first["embeddings"], second["embeddings"])


def test_ties_and_several_matches():
    """Text 0 belongs to videos 1 and 2; text 1 ties with all, so the order of the data decides."""
    scores = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0], [0.0, 1.0, 2.0]], np.float32)
    texts, videos = [0, 0, 1, 2], [1, 2, 1, 0]
    found = summarize_retrieval({"level_1": scores, "level_2": -scores}, texts, videos)
    assert found["l1_simi_t2v-r@1"] == 0  # ranks 2, 2, 3
    assert found["l1_simi_t2v-mr"] == 2
    assert found["l1_simi_v2t-mr"] == 2  # ranks 3, 1, 2: texts 0 and 2 tie for video 2
    assert found["l1_simi_v2t-r@1"] == pytest.approx(1 / 3)
    expected = ranking_metrics(-scores, [[1, 2], [1], [0]])
    assert found["l2_simi_t2v-r@1"] == expected["R@1"]
    assert found["chance/l2_simi_t2v-r@1"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    assert found["chance/l1_simi_t2v-r@5"] == 1
    assert found["chance/l2_simi_t2v-mr"] == 2  # means 4/3, 2 and 2
    assert (found["texts"], found["videos"]) == (3, 3)


LINES = [
    line(1, "b.mp4", "a dog runs"),
    line(2, "a.mp4", "a cat sleeps"),
    line(3, "b.mp4", "a cat sleeps"),
    line(4, "c.mp4", "a bird"),
]


def test_retrieval_writes_ranks_and_scores(tmp_path):
    config, table = prepared(tmp_path, LINES)
    video = np.random.default_rng(2).normal(size=(3, CLIPS, DIM)).astype(np.float32)
    made = with_evaluator(config, tmp_path, "retrieval")
    found, lines = evaluated(made, {"video": video}, 2, tmp_path)
    assert [own["caption"] for own in lines] == ["a dog runs", "a cat sleeps", "a bird"]
    assert [[each["video"] for each in own["truth"]] for own in lines] == [["b.mp4"], ["b.mp4", "a.mp4"], ["c.mp4"]]
    for number, own in enumerate(lines):
        order = np.argsort(-found.outputs["level_2"][number], kind="stable")
        assert [each["video"] for each in own["best"]] == [table.videos[video] for video in order]
        assert own["best"][0]["level_1"] == pytest.approx(found.outputs["level_1"][number, order[0]])
        true = [table.videos[video] in {each["video"] for each in own["truth"]} for video in order]
        assert own["ranks"]["level_2"] == true.index(True) + 1
    at_first = np.mean([own["ranks"]["level_2"] == 1 for own in lines])
    assert found.metrics["l2_simi_t2v-r@1"] == pytest.approx(at_first)
    assert "first" in json.loads((tmp_path / "test.json").read_text())["protocol"]["ties"]
    quick = evaluated(with_evaluator(config, tmp_path, "retrieval", level_2=False), {"video": video})
    assert {name: value for name, value in found.metrics.items() if "l2_" not in name} == quick.metrics
    with pytest.raises(DataError, match=r"data: 2 videos of test were read, its table has 3"):
        evaluated(made, {"video": video[:2]})


def test_answers_outside_of_the_vocabulary_are_wrong(tmp_path):
    vocabulary = list("abcdefg")
    rows = [("a",), ("zebra",), ("g",), ("c", "b")]
    config, _ = prepared(tmp_path, [line(n, f"{n}", "what", answers=a) for n, a in enumerate(rows)], vocabulary)
    write_answers(tmp_path / "answers.json", vocabulary)
    config.head, config.model.num_answers = "question_answering", ANSWERS
    config.answers.vocabulary = str(tmp_path / "answers.json")
    rng = np.random.default_rng(3)
    arrays = {**texts_of(rng, 4), "video": rng.normal(size=(4, CLIPS, DIM)).astype(np.float32)}
    found, lines = evaluated(with_evaluator(config, tmp_path, "answers"), arrays, 1, tmp_path)
    scores = jax.nn.softmax(answer(VARIABLES, {**arrays, "tokens": arrays["video"]})["scores"])
    best = np.asarray(jnp.argmax(scores, 1))
    right = np.mean([vocabulary[b] in row for b, row in zip(best, rows, strict=True)])
    counts = {"questions": 4, "outside_vocabulary": 1}
    assert found.metrics == {"accuracy": round(right, 4), "chance/accuracy": 0.25, **counts}
    assert [own["prediction"] for own in lines] == [vocabulary[b] for b in best]
    assert [own["truth"] for own in lines] == ["a", "zebra", "g", "c, b"]
    assert [len(own["best"]) for own in lines] == [5] * 4
    assert lines[2]["best"][0]["score"] == pytest.approx(float(scores[2].max()), rel=1e-5)
    config.model.num_answers = 3
    with pytest.raises(ConfigError, match=r"answers\.json has 7 answers, the model 3"):
        evaluated(with_evaluator(config, tmp_path, "answers"), arrays, 1, tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_choices_are_made_without_truth_too(tmp_path, known):
    """The first question has three options, the second two."""
    options = [("dog", "cat", "bird"), ("cat", "dog")]
    lines = [line(n, f"{n}.mp4", "which", answers=(n,) if known else (), options=own) for n, own in enumerate(options)]
    config, _ = prepared(tmp_path, lines)
    rng = np.random.default_rng(4)
    arrays = {
        "video": rng.normal(size=(2, CLIPS, DIM)).astype(np.float32),
        "text": rng.integers(0, WORDS, (2, 5, 4)).astype(np.int32),
        "text_mask": np.ones((2, 5, 4), np.int32),
        "option_mask": np.arange(5) < np.array([[3], [2]]),
    }
    found, lines = evaluated(with_evaluator(config, tmp_path, "choices"), arrays, 1, tmp_path)
    for number, own in enumerate(lines):
        assert [each["option"] for each in own["options"]] == list(options[number])
        scores = [each["score"] for each in own["options"]]
        assert own["prediction"] == np.argmax(scores)
        assert own["answer"] == options[number][own["prediction"]]
        assert own["truth"] == (number if known else None)
    right = np.mean([own["prediction"] == number for number, own in enumerate(lines)])
    assert found.metrics == {"questions": 2} | (
        {"accuracy": right, "chance/accuracy": pytest.approx((1 / 3 + 1 / 2) / 2)} if known else {}
    )


def test_kinds_that_a_head_does_not_have_are_one_line(tmp_path):
    config, _ = prepared(tmp_path, LINES)
    with pytest.raises(ConfigError, match=r"config\.evaluation\.test\.kind: 'guess' is not one of retrieval, answers"):
        with_evaluator(config, tmp_path, "guess")
    with pytest.raises(ConfigError, match=r"'answers' needs a run of question_answering, found retrieval"):
        with_evaluator(config, tmp_path, "answers")
    config.head = "question_answering"
    for kind in ("choices", "retrieval"):
        with pytest.raises(ConfigError, match=f"'{kind}' needs level 2, which question_answering does not"):
            with_evaluator(config, tmp_path, kind)
    assert with_evaluator(config, tmp_path, "retrieval", level_2=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""CTRL's sentences from annotations and vectors, and the demo of one video."""

import csv
import json
import pickle

import ctrl_files
import numpy as np
import pytest

from data_prep.ctrl import prepare as preparation
from data_prep.ctrl import sentences
from vlm_jax import config as configs
from vlm_jax import text_features as text_vectors
from vlm_jax.annotations import Query, write
from vlm_jax.errors import DataError
from vlm_jax.systems.ctrl import data
from vlm_jax.systems.ctrl.config import default_config
from vlm_jax.systems.ctrl.samples import SampleSpec, train_pipeline
from vlm_jax.text_features import TextSettings
from vlm_jax.types import DataShard

SETTINGS = TextSettings("sentence", 3, "f" * 64, "a" * 64, True, 16)
SPEC = SampleSpec(visual_dim=12, sentence_dim=3, text_source=SETTINGS.source)


def vectors(tmp_path, **by_name):
    text_vectors.save(tmp_path / "vectors.npz", by_name, SETTINGS)
    return tmp_path / "vectors.npz"


def prepare(tmp_path, *words):
    output = tmp_path / "queries"
    preparation.main(["queries", "--split", "train", "--output", str(output), *map(str, words)])
    with open(output / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def test_annotations_become_records_a_moment_each(tmp_path):
    queries = [
        Query("a", "v.mp4", "she sings", 100.0, ((1.0, 2.5), (10.0, 20.0))),
        Query("b", "v.mp4", "no vector", 100.0, ((1.0, 2.0),)),
        Query("c", "w", "NaN", 100.0, ((1.0, 2.0),)),
        Query("d", "w", "another width", 100.0, ((1.0, 2.0),)),
        Query("e", "w", "no moment", 100.0),
        Query("f", "w", "zero", 100.0, ((2.0, 2.0),)),
    ]
    write(tmp_path / "ours.jsonl", queries)
    made = vectors(tmp_path, a=np.arange(3.0), c=np.full(3, np.nan), d=np.ones(4), e=np.ones(3), f=np.ones(3))
    skipped = prepare(tmp_path, "--format=jsonl", "--sentences", tmp_path / "ours.jsonl", "--vectors", made, "--fps=20")
    reasons = {"b": "no vector", "c": "bad vector", "d": "bad vector", "e": "no moment is given", "f": "zero length"}
    assert skipped == reasons
    found = data.load_queries(str(tmp_path / "queries"), "train", SPEC)
    assert [(query.qid, query.video, query.text, query.fps, query.span.tolist()) for query in found] == [
        ("a", "v.mp4", "she sings", 20.0, [20.0, 50.0]),
        ("a", "v.mp4", "she sings", 20.0, [200.0, 400.0]),
    ]
    np.testing.assert_array_equal(found[0].vector, np.arange(3, dtype=np.float32))
    config = default_config()
    config.data.queries = str(tmp_path / "queries")
    configs.describe(config)
    assert (config.model.sentence_dim, config.data.text_source) == (3, SETTINGS.source)
    assert TextSettings(**config.data.text_features) == SETTINGS


def test_our_own_annotations_give_the_samples_of_the_released_form(tmp_path):
    """The same sentences from a pickle, and from a file of moments with vectors beside it."""
    folder = ctrl_files.prepare(ctrl_files.write(tmp_path, videos=3))
    queries, named = [], {}
    for clip, several in pickle.loads((folder / "train.pkl").read_bytes()):
        video, start, end = clip.decode().rsplit("_", 2)
        for vector in several:
            name = str(len(queries))
            moment = (int(start) / 20, int(end) / 20)
            queries.append(Query(name, video, "something", 0.0, (moment,), 20.0, ((int(start), int(end)),)))
            named[name] = vector[: ctrl_files.VECTOR]
    write(folder / "ours.jsonl", queries)
    np.savez(folder / "ours.npz", **named)
    words = ["--format=jsonl", "--sentences", folder / "ours.jsonl", "--vectors", folder / "ours.npz", "--fps=20"]
    preparation.main(["queries", "--split", "train", "--output", str(folder / "ours"), *map(str, words)])
    spec = SampleSpec(visual_dim=3 * ctrl_files.WIDTH, sentence_dim=ctrl_files.VECTOR)
    ours, theirs = (
        iter(train_pipeline(data.load(str(folder / "windows"), str(folder / name), "train", spec), spec, shard))
        for name, shard in (("ours", DataShard(batch_size=8)), ("queries", DataShard(batch_size=8)))
    )
    for _ in range(4):
        batch, other = next(ours), next(theirs)
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_vectors_of_another_tower_are_refused_when_read(tmp_path):
    write(tmp_path / "ours.jsonl", [Query("a", "v", "she sings", 0.0, ((1.0, 2.5),))])
    made = vectors(tmp_path, a=np.ones(3))
    prepare(tmp_path, "--format=jsonl", "--sentences", tmp_path / "ours.jsonl", "--vectors", made, "--fps=20")
    with pytest.raises(DataError, match=r"prepared with text_source = 'sentence:lower:16:ffff.*config asks for ''"):
        data.load_queries(str(tmp_path / "queries"), "train", SampleSpec(visual_dim=12, sentence_dim=3))


def test_tacos_keeps_its_own_frames(tmp_path):
    content = {"s1.avi": {"timestamps": [[30, 61]], "sentences": ["He cuts."], "fps": 29.4, "num_frames": 99}}
    (tmp_path / "train.json").write_text(json.dumps(content))
    made = vectors(tmp_path, **{"s1.avi#0": np.ones(3)})
    assert prepare(tmp_path, "--format=tacos", "--sentences", tmp_path / "train.json", "--vectors", made) == {}
    (query,) = data.load_queries(str(tmp_path / "queries"), "train", SPEC)
    assert (query.span.tolist(), query.fps) == ([30.0, 61.0], 29.4)


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "test.txt").write_text("AO8RW 0.0 6.9##a person leaves\n")
    made = vectors(tmp_path, other=np.ones(3))
    words = ["--format=charades", "--sentences", tmp_path / "test.txt"]
    with pytest.raises(DataError, match="--vectors: pickle holds vectors itself, all other forms need"):
        prepare(tmp_path, *words)
    with pytest.raises(DataError, match="1: its times are in seconds, windows are in frames; give --fps"):
        prepare(tmp_path, *words, "--vectors", made)
    with pytest.raises(DataError, match="no vector of any sentence; its names are such as 'other'"):
        prepare(tmp_path, *words, "--vectors", made, "--fps=24")
    with pytest.raises(DataError, match=r"absent\.npz: no such file"):
        prepare(tmp_path, *words, "--vectors", tmp_path / "absent.npz", "--fps=24")
    words[2] = tmp_path / "absent.txt"
    with pytest.raises(DataError, match=r"absent\.txt: No such file"):
        prepare(tmp_path, *words, "--vectors", made, "--fps=24")
    words = vectors(tmp_path, **{"1": np.ones((4, 3))})
    with pytest.raises(DataError, match=r"1: found \[4, 3\], expected one vector a sentence"):
        sentences.vector_dim(sentences.TextVectors(words), [{"qid": "1"}])


def test_a_demo_is_the_first_video_with_its_first_sentences(tmp_path, capsys):
    ctrl_files.write(tmp_path, videos=3)
    source = ["--sentences", tmp_path / "train.pkl", "--features", tmp_path / "features"]
    preparation.main(["demo", *map(str, source), "--output", str(tmp_path / "infer"), f"--dim={ctrl_files.VECTOR}"])
    content = pickle.loads((tmp_path / "infer" / "infer_clip-sen.pkl").read_bytes())
    whole = [entry for entry in pickle.loads((tmp_path / "train.pkl").read_bytes()) if entry[0].startswith(b"s0-")]
    assert [(name, len(rows)) for name, rows in content] == [(name, 1) for name, _ in whole]
    np.testing.assert_array_equal(content[0][1][0], whole[0][1][0][: ctrl_files.VECTOR].astype(np.float32))
    copied = sorted(path.name for path in (tmp_path / "infer" / "infer_feat").iterdir())
    assert copied == sorted(path.name for path in (tmp_path / "features").glob("s0-*"))
    assert f"s0-d_0.avi, {len(content)} sentences, {len(copied)} windows" in capsys.readouterr().out
    read = sentences.read_sentences(tmp_path / "infer" / "infer_clip-sen.pkl", ctrl_files.VECTOR)
    assert len(read) == len(content), "it can be prepared like the whole"
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: 0 windows"):
        sentences.write_demo(tmp_path / "train.pkl", tmp_path / "none", tmp_path, ctrl_files.VECTOR)

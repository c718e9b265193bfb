"""From a video file to moments in one call: the run knows what made the features that it was trained on."""

import json
import shutil

import jax
import matplotlib.image
import numpy as np
import pytest

from data_prep.ctrl import prepare as ctrl_preparation
from data_prep.groundnlq import prepare as groundnlq_preparation
from vlm_jax import config as configs
from vlm_jax import inference
from vlm_jax.features import FeatureError
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import save_variables
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

QUERIES = {"a": "she sings", "b": "she leaves never", "c": "unheard"}
"""The last one has no word of the list."""


def save(folder, config, seed):
    """A checkpoint of random numbers."""
    rng = np.random.default_rng(seed)
    shapes = get_task(config).abstract_variables()
    variables = jax.tree.map(lambda leaf: rng.uniform(0, 0.2, leaf.shape).astype(leaf.dtype), shapes)
    save_variables(folder, variables, {})
    configs.write(config, folder / "config.json")


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """An encoder, a film, features of both kinds by the commands, data sets of both systems, and a run of each."""
    made = tmp_path_factory.mktemp("video")
    np.save(made / "words.npy", np.array(["she", "sings", "leaves", *(f"<unused {n}>" for n in range(96))]))
    config = configs.load(str(root / "configs/milnce_howto100m.py:smoke"))
    config.model.blocks, config.text.vocabulary = ("3b",), str(made / "words.npy")
    save(made / "encoder", config, 0)
    frames = decode.read_frames(root / "data_prep/clips/bunny.mp4", seconds=9, fps=10, filters="scale=64:48")
    (made / "videos").mkdir()
    write_video(made / "videos" / "film.mp4", frames, 10)
    lines = [
        {"qid": qid, "video": "film", "query": text, "duration": 9, "spans": [[1, 3]]} for qid, text in QUERIES.items()
    ]
    (made / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


@pytest.fixture(scope="module")
def prepared(root, folder):
    import runpy
    import sys

    def command(script, *words):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            patch.setattr(sys, "argv", [script, *map(str, words)])
            patch.syspath_prepend(str(root / "launch"))
            runpy.run_path(f"launch/{script}.py", run_name="__main__")

    encoder = ["--checkpoint", folder / "encoder"]
    command("extract_features", *encoder, "--videos", folder / "videos", "--output", folder / "features", "--stride", 2)
    for layer in ("sentence", "words"):
        text = ["--queries", folder / "queries.jsonl", "--layer", layer, "--output", folder / f"{layer}.npz"]
        command("extract_text_features", *encoder, *text)
    shards = ["--num_shards", "1"]
    clips = ["--features", str(folder / "features"), *shards]
    questions = ["--format", "jsonl", "--split", "train", *shards]
    words = [*clips, "--fps", "10", "--lengths", "16", "32", "--output", str(folder / "ctrl/windows")]
    ctrl_preparation.main(["windows", *words])
    words = ["--sentences", str(folder / "queries.jsonl"), "--vectors", str(folder / "sentence.npz"), "--fps", "10"]
    ctrl_preparation.main(["queries", *words, *questions, "--output", str(folder / "ctrl/queries")])
    groundnlq_preparation.main(["features", *clips, "--output", str(folder / "nlq/features")])
    words = ["--annotations", str(folder / "queries.jsonl"), "--text", str(folder / "words.npz")]
    groundnlq_preparation.main(["queries", *words, *questions, "--output", str(folder / "nlq/queries")])

    config = configs.load(str(root / "configs/ctrl_tacos.py:smoke"))
    config.data.synthetic = False
    config.data.windows, config.data.queries = str(folder / "ctrl/windows"), str(folder / "ctrl/queries")
    config.predict.update({"windows": config.data.windows, "queries": config.data.queries, "split": "train"})
    configs.describe(config)
    save(folder / "ctrl_run", config, 1)
    config = configs.load(str(root / "configs/groundnlq_scratch.py:smoke"))
    config.data.synthetic = False
    config.data.features, config.data.queries = str(folder / "nlq/features"), str(folder / "nlq/queries")
    config.predict.update({"features": config.data.features, "queries": config.data.queries, "split": "train"})
    configs.describe(config)
    save(folder / "nlq_run", config, 2)
    return folder


@pytest.mark.parametrize("run", ["ctrl_run", "nlq_run"])
def test_a_raw_video_is_answered_as_the_prepared_one(prepared, run):
    """The features that are made on the spot are those that were extracted, prepared and read back."""
    predictor = inference.load(prepared / run)
    found = predictor.ground(prepared / "videos" / "film.mp4", list(QUERIES.values()), top_k=3)
    assert [bool(moments) for moments in found] == [True, True, False], "no word of the last sentence is known"
    lines = {line["qid"]: line["seconds"] for line in predictor.predict([{"video": "film"}], 3).lines}
    assert json.loads((prepared / "features" / "film.duration.json").read_text()) == {"seconds": 9.0}
    assert all(0 <= moment.start < moment.end <= 9 for moments in found for moment in moments)
    for qid, moments in zip("ab", found, strict=False):
        assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)
        np.testing.assert_allclose(moments, lines[qid], rtol=1e-4, atol=1e-3)
    raw = predictor.predict([{"video": "film", "query": text, "qid": qid} for qid, text in QUERIES.items()], 3)
    assert [line["qid"] for line in raw.lines] == ["a", "b"]
    assert raw.missing == [("c", "no known word", "unheard")]
    for line in raw.lines:
        np.testing.assert_allclose(line["seconds"], lines[line["qid"]], rtol=1e-4, atol=1e-3)


def test_the_command_prints_moments_and_draws_them(prepared, tmp_path, command):
    film = prepared / "videos" / "film.mp4"
    words = ["--checkpoint", prepared / "nlq_run", "--video", film, "--query", "she sings", "--query", "unheard"]
    said, error = command("predict", *words, "--top_k", 2, "--figure", tmp_path / "a.png", "--output", tmp_path)
    assert not error
    shown = said.splitlines()
    assert shown[0] == "she sings"
    assert shown[1].split()[0] == "1."
    assert " to " in shown[1]
    assert "no moment" in said
    assert matplotlib.image.imread(tmp_path / "a.png").shape[1] == 2100
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [len(line["seconds"]) for line in lines] == [2, 0]


def test_other_encoders_and_released_features_are_named(prepared, tmp_path, command, root):
    film = prepared / "videos" / "film.mp4"
    shutil.copytree(prepared / "encoder", tmp_path / "moved")
    found = inference.load(prepared / "ctrl_run", text_checkpoint=tmp_path / "moved").ground(film, ["she sings"])
    assert len(found) == 1
    save(tmp_path / "other", configs.find(prepared / "encoder"), 9)
    words = ["--checkpoint", prepared / "ctrl_run", "--video", film, "--query", "she sings"]
    _, error = command("predict", *words, "--video_checkpoint", tmp_path / "other")
    assert "other: other weights than those that made the video features of training" in error
    _, error = command("predict", *words[:-2])
    assert "--video and --query belong together" in error
    save(tmp_path / "released", configs.load(str(root / "configs/ctrl_tacos.py:smoke")), 3)
    with pytest.raises(FeatureError, match=r"config\.data\.text_features: empty; the model was trained on features"):
        inference.load(tmp_path / "released").ground(film, ["she sings"])

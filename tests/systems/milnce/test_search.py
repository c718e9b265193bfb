"""Windows of videos by sentence, with a small MIL-NCE of random numbers."""

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import inference
from vlm_jax.errors import ConfigError, DataError
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import save_variables
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

WORDS = ["a", "bird", "sings", "car"]


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    made = tmp_path_factory.mktemp("search")
    np.save(made / "words.npy", np.array([*WORDS, *(f"<unused {n}>" for n in range(95))]))
    config = configs.load(str(root / "configs/milnce_howto100m.py:smoke"))
    config.model.blocks, config.text.vocabulary = ("3b",), str(made / "words.npy")
    rng = np.random.default_rng(0)
    shapes = get_task(config).abstract_variables()
    variables = jax.tree.map(lambda leaf: rng.uniform(0, 0.2, leaf.shape).astype(leaf.dtype), shapes)
    save_variables(made / "run", variables, {})
    configs.write(config, made / "run" / "config.json")
    (made / "videos" / "deep").mkdir(parents=True)
    for name, clip in (("bird.mp4", "bunny"), ("deep/car.mkv", "race1906")):
        frames = decode.read_frames(root / f"data_prep/clips/{clip}.mp4", seconds=6, fps=10, filters="scale=64:48")
        write_video(made / "videos" / name, frames, 10)
    return made


@pytest.fixture(scope="module")
def model(folder):
    return inference.load(folder / "run")


def test_windows_of_all_videos_are_ranked(folder, model):
    clips = model.config.clips
    sentences = ["a bird sings", "car"]
    text = model.encode_text(sentences)
    expected = [[], []]
    for name in ("bird.mp4", "deep/car.mkv"):
        rows = model.extract(folder / "videos" / name, layer="video_embedding", stride=3)
        assert len(rows) > 2
        for own, scores in zip(expected, text @ rows.T, strict=True):
            spans = [(3 * n / clips.fps, (3 * n + clips.num_frames) / clips.fps) for n in range(len(rows))]
            own += [(name, *span, score) for span, score in zip(spans, scores, strict=True)]
    (folder / "videos" / "broken.mp4").write_bytes(b"none")
    with pytest.warns(UserWarning, match=r"broken\.mp4: unreadable.*; left out"):
        found = model.search(sentences, folder / "videos", 4, stride=3)
    for own, every in zip(found, expected, strict=True):
        best = sorted(every, key=lambda each: -each[3])[:4]
        assert [(match.video, match.start, match.end) for match in own] == [each[:3] for each in best]
        np.testing.assert_allclose([match.score for match in own], [each[3] for each in best], rtol=1e-5)


def test_the_command_prints_times(folder, command, tmp_path):
    words = ["--checkpoint", folder / "run", "--search", "a bird sings", "--videos", folder / "videos" / "bird.mp4"]
    said, error = command("predict", *words, "--top_k", 1, "--figure", tmp_path / "a.png")
    assert not error
    assert said.splitlines()[0] == "a bird sings"
    assert f"  1. {folder / 'videos' / 'bird.mp4'}  " in said.splitlines()[1]
    assert " s   score " in said.splitlines()[1]
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_what_cannot_be_searched_is_one_line(folder, model, tmp_path):
    with pytest.warns(UserWarning, match="blorp"), pytest.raises(DataError, match="search: no word of 'blorp' is in"):
        model.search(["a bird", "blorp"], folder / "videos")
    with pytest.raises(ConfigError, match="top_k: expected at least 1, found 0"):
        model.search(["a"], folder / "videos", 0)
    with pytest.raises(DataError, match="no videos"):
        model.search(["a"], tmp_path)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DataError, match="none of the videos can be read"):
        model.search(["a"], [tmp_path / "absent.mp4"])

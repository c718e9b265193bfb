"""Small runs of SNP-S3 with random numbers, and films to search and ask about."""

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax.systems.snps3.answers import write as write_answers
from vlm_jax.systems.snps3.config import default_config, describe, visual_network
from vlm_jax.task import get_task
from vlm_jax.text.vocabulary import word_pieces
from vlm_jax.train.checkpoint import save_variables
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

ANSWERS = ["red", "blue", "green"]
TEXTS = ["a red square grows", "a blue circle turns left", "the green star rests"]


def small(folder, head):
    """A narrow model on two clips of 32 pixels."""
    config = default_config()
    config.head = head
    config.batch_size = config.batch_groups = config.data.streams = 1
    config.frames.clips, config.frames.size, config.frames.evaluation_short_side = 2, 32, 36
    config.model.update({"features": 32, "layers": 1, "heads": 2, "hidden": 48, "positions": 16})
    config.model.visual = visual_network("swin", features=16, depths=(1, 1), heads=(1, 1), drop_path=0.0)
    config.text.vocabulary, config.text.length = str(folder / "vocab.txt"), 12
    if head == "question_answering":
        config.answers.vocabulary = str(folder / "answers.json")
    configs.set_keys(config, describe(config))
    config.momentum.enabled, config.steps = False, 1
    return config


def save(folder, config, seed):
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if len(leaf.shape) > 1:
            return rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key == "scale", leaf.dtype)

    save_variables(folder, jax.tree_util.tree_map_with_path(value, get_task(config).abstract_variables()), {})
    configs.write(config, folder / "config.json")


def make_runs(made, root):
    """Make three films of different sizes, one of them with a single frame, and a run for each head."""
    (made / "vocab.txt").write_text("\n".join(word_pieces([*TEXTS, *ANSWERS], 90)) + "\n")
    write_answers(made / "answers.json", ANSWERS)
    (made / "videos").mkdir()
    frames = decode.read_frames(root / "data_prep/clips/bunny.mp4", seconds=3, fps=10, filters="scale=64:48")
    write_video(made / "videos/bunny.mp4", frames, 10, lossless=True)
    frames = decode.read_frames(root / "data_prep/clips/chaplin.mp4", seconds=2, fps=10, filters="scale=40:56")
    write_video(made / "videos/chaplin.mkv", frames, 10, lossless=True)
    write_video(made / "videos/still.mp4", frames[:1], 10, lossless=True)
    for head in ("retrieval", "question_answering", "multiple_choice"):
        save(made / head, small(made, head), 1)
    return made

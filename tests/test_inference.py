"""The Python interface on the released model: from its file and raw sentences to the reference's own numbers."""

import json
import runpy
import sys

import cases
import numpy as np
import pytest

from vlm_jax import inference
from vlm_jax.interop import torch_files
from vlm_jax.systems.milnce.interop import model_options
from vlm_jax.text import word_list


@pytest.fixture(scope="module")
def case(root):
    return cases.Case(root / "tests" / "golden" / "milnce" / "s3d_released_eval.json")


@pytest.fixture(scope="module")
def converted(root, case, tmp_path_factory):
    """The released file, under its own names, and its word list, through the command."""
    folder = tmp_path_factory.mktemp("released")
    source = {name: value.astype(np.float32) for name, value in case.weights().items()}
    torch_files.save(folder / "s3d_howto100m.pth", source)
    rows = len(source["text_module.word_embd.weight"])
    words = case.manifest["vocabulary"]
    np.save(
        folder / "s3d_dict.npy", np.array(words + [f"<unused {number}>" for number in range(rows - 1 - len(words))])
    )
    words = ["--system", "milnce", "--source", folder / "s3d_howto100m.pth", "--output", folder / "converted"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, words)])
        patch.syspath_prepend(str(root / "launch"))
        runpy.run_path(str(root / "launch" / "convert_checkpoint.py"), run_name="__main__")
    return folder


@pytest.fixture(scope="module")
def model(converted):
    return inference.load(converted / "converted", vocabulary=converted / "s3d_dict.npy")


def assert_close(case, name, ours):
    assert cases.relative_error(ours, case[name]) <= case.tolerance["float32_run"]["default"], name


def test_raw_sentences_and_video_give_the_released_model_s_numbers(case, model):
    """Nothing is said but the sentences: lower case and 16 words come with the checkpoint."""
    video = np.moveaxis(case["in/video_uint8"], 1, -1)
    assert_close(case, "out/video_embedding", model.encode_video(video))
    assert_close(case, "out/mixed_5c", model.video_features(video))
    assert_close(case, "out/text_embedding", model.encode_text(case.manifest["sentences"]))


def test_what_the_sentences_become(case, converted, model):
    vocabulary = word_list.load(converted / "s3d_dict.npy", model.config.text.rows)
    ids = [word_list.encode(sentence, vocabulary, 16, lower=True) for sentence in case.manifest["sentences"]]
    np.testing.assert_array_equal(ids, case["in/text_ids"])


def test_a_caller_may_ask_for_the_loaders_way(case, model):
    """No lower-casing and 30 words, as the evaluation's csv files are read."""
    sentences = case.manifest["sentences"]
    raw, loaders = model.encode_text(sentences), model.encode_text(sentences, lower_case=False, max_words=30)
    differs = np.abs(raw - loaders).max(1) > 1e-6
    # Capitals; no known word; capitals; the 20th word, that 16 cut off; nothing.
    assert differs.tolist() == [True, False, True, True, False]
    lower = [sentence.lower() for sentence in sentences]
    np.testing.assert_allclose(model.encode_text(lower, lower_case=False), raw, rtol=1e-5, atol=1e-6)


def test_words_that_are_lost_are_named(model):
    with pytest.warns(UserWarning, match=r"1 of 2 words are not in .*s3d_dict.npy and are dropped \(blorp\)"):
        model.encode_text(["cut blorp"])
    with pytest.warns(UserWarning, match=r"1 of 1 sentences have no known word, so their embedding says nothing"):
        model.encode_text(["blorp"])


def test_evaluation_reads_captions_the_loaders_way(converted):
    config = json.loads((converted / "converted" / "config.json").read_text())
    text = config["text"]
    assert (text["lower_case"], text["max_words_retrieval"]) == (False, 30)
    assert (text["lower_case_raw"], text["max_words_raw"]) == (True, 16)


def test_a_training_checkpoint_keeps_capitals(case):
    source = dict.fromkeys(("fc.weight", "text_module.fc1.weight", "text_module.word_embd.weight"), np.zeros((2, 3)))
    plain = model_options(source | {"conv1.conv1.weight": np.zeros((64, 3, 3, 7, 7))})
    assert not {"lower_case", "lower_case_raw", "max_words_raw"} & plain["text"].keys()

"""CTRL's checkpoints under both references' names, and files of sentence vectors."""

import pickle

import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.interop.restricted_pickle import UnsafePickleError
from vlm_jax.interop.rules import ConversionError, flatten
from vlm_jax.interop.torch_files import load_pickle
from vlm_jax.systems.ctrl import interop as names
from vlm_jax.task import get_task

CONFIG = "configs/ctrl_tacos.py:smoke"
RNG = np.random.default_rng(0)
PADDLE = {
    "v2s_lt_weights": (24, 16),
    "s2s_lt_weights": (10, 16),
    "mid_out_weights": (12, 64, 1, 1),
    "sim_mat_weights": (3, 12, 1, 1),
}
ORIGINAL = {
    "CTRL_Model/v2s_lt/weights": (24, 16),
    "CTRL_Model/v2s_lt/biases": (16,),
    "CTRL_Model/s2s_lt/weights": (10, 16),
    "CTRL_Model/s2s_lt/biases": (16,),
    "CTRL_Model/vs_multilayer_lt/layer1/weights": (1, 1, 64, 12),
    "CTRL_Model/vs_multilayer_lt/layer1/biases": (12,),
    "CTRL_Model/vs_multilayer_lt/layer2/weights": (1, 1, 12, 3),
    "CTRL_Model/vs_multilayer_lt/layer2/biases": (3,),
}


def arrays(shapes):
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("shapes", [PADDLE, ORIGINAL])
def test_every_array_finds_its_place_and_comes_back(root, monkeypatch, shapes):
    monkeypatch.chdir(root)
    source = names.state_dict(arrays(shapes))
    config = configs.load(CONFIG)
    options = names.model_options(source)["model"]
    assert options["use_bias"] is (shapes is ORIGINAL)
    assert options["normalisation"] == ("floor" if shapes is ORIGINAL else "added")
    sizes = ("visual_dim", "sentence_dim", "dim", "hidden_dim")
    assert {name: options[name] for name in sizes} == {name: config.model[name] for name in sizes}
    config.model.update(options)
    variables = names.to_variables(source, get_task(config).abstract_variables())
    back = names.to_state_dict(variables)
    assert back.keys() == source.keys()
    for name, array in source.items():
        np.testing.assert_array_equal(back[name], array)
    kernel = variables["params"]["hidden"]["kernel"]
    first = source.get("mid_out_weights")
    expected = (
        first[5, 7, 0, 0] if first is not None else source["CTRL_Model/vs_multilayer_lt/layer1/weights"][0, 0, 7, 5]
    )
    assert kernel[7, 5] == expected


def test_names_of_tensorflow_variables():
    source = {f"{name}:0": array for name, array in arrays(ORIGINAL).items()}
    assert names.state_dict(source).keys() == ORIGINAL.keys()


@pytest.mark.parametrize("content", [{}, {"fc.weight": np.ones(2)}, [1]])
def test_another_checkpoint_is_no_ctrl(content):
    with pytest.raises(ConversionError, match="not a CTRL checkpoint: it has neither 'v2s_lt_weights' nor"):
        names.state_dict(content)


def test_what_does_not_fit_is_listed(root, monkeypatch):
    monkeypatch.chdir(root)
    expected = get_task(configs.load(CONFIG)).abstract_variables()
    source = arrays(PADDLE)
    source["mid_out_weights"] = np.zeros((12, 64, 3, 1), np.float32)
    del source["sim_mat_weights"]
    with pytest.raises(ConversionError) as said:
        names.to_variables({**source, "more": np.ones(1)}, expected)
    assert "params/output/kernel" in str(said.value)
    assert "more" in str(said.value)
    assert "mid_out_weights" in str(said.value)
    assert len(flatten(expected)) == 4


@pytest.mark.parametrize("name", ["s13-d21.avi_92_140", b"s13-d21.avi_92_140"])
def test_sentence_vectors_with_names_as_text_and_as_bytes(name):
    vectors = [np.arange(6.0), list(range(6))]
    content = load_pickle(pickle.dumps([[name, vectors], ("s14_1_2", [])], 2), "latin1")
    first, second = names.clip_sentences(content, 4)
    assert first.name == "s13-d21.avi_92_140"
    assert first.vectors.dtype == np.float32
    np.testing.assert_array_equal(first.vectors, [[0, 1, 2, 3], [0, 1, 2, 3]])
    assert second.vectors.shape == (0, 4)


def test_sentence_vectors_written_by_python_2():
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01(K\x02t" + dtype + b"I00\nU\x08\x00\x00\x80?\x00\x00\x00\xc0tb"
    content = load_pickle(b"\x80\x02](](U\x07a_1_20\xe9](" + array + state + b"eee.", "latin1")
    (clip,) = names.clip_sentences(content, 2)
    assert clip.name == "a_1_20\xe9"
    np.testing.assert_array_equal(clip.vectors, [[1.0, -2.0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "expected a list"),
        ([["a_1_2", [[1.0, 2.0]]], ["b_1_2"]], "entry 1 is not"),
        ([["a_1_2", [[1.0]]]], "entry 0 has a vector of 1 numbers, expected 2"),
        ([[3, [[1.0, 2.0]]]], "entry 0 has the name 3"),
        ([["a_1_2", ["word"]]], "entry 0 is not"),
    ],
)
def test_other_content_is_named(content, message):
    with pytest.raises(ConversionError, match=message):
        names.clip_sentences(content, 2)


def test_hostile_vectors_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match=r"posix\.system"):
        load_pickle(b"\x80\x02](U\x05a_1_2cposix\nsystem\n(U\ttouch rantRe.", "latin1")
    assert not list(tmp_path.iterdir())

"""Checkpoints of SNP-S3, both ways, and the files that a run starts from, several in one run."""

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import convert, references
from vlm_jax.errors import ConfigError
from vlm_jax.interop import torch_files
from vlm_jax.interop.rules import ConversionError, flatten
from vlm_jax.systems.snps3 import interop
from vlm_jax.systems.snps3.config import visual_network
from vlm_jax.task import get_task
from vlm_jax.train import sharding
from vlm_jax.train.initialise import initialise
from vlm_jax.train.setup import prepare

SMALL = {
    "swin": {"features": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2)},
    "pvt": {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2)},
    "resnet": {"blocks": (1, 1, 1, 3), "width": 0.125},
}
HEADS = {
    "pretraining": "configs/snps3_pretrain_cc3m.py:smoke",
    "retrieval": "configs/snps3_retrieval_msrvtt.py:smoke",
    "question_answering": "configs/snps3_qa_msvd.py:smoke",
}


def smoke(root, head="pretraining", network="swin"):
    config = configs.load(str(root / HEADS[head]))
    with config.unlocked():
        config.model.visual = visual_network(network, **SMALL[network])
    return config


def made(config):
    """Return variables of a model, every number its own, with the cross pooler unlike the pooler."""
    rng = np.random.default_rng(0)
    shapes = get_task(config).abstract_variables()
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("head", HEADS)
def test_there_and_back(root, head, network):
    config = smoke(root, head, network)
    variables = made(config)
    source = interop.to_state_dict(variables)
    prefix = "model.model." if head == "pretraining" else "model."
    assert f"{prefix}module.text_encoder.embeddings.word_embeddings.weight" in source
    found = interop.state_dict({"model": {f"module.{name}": array for name, array in source.items()}})
    # Names that share a tensor with another one are written, and left out again.
    assert len(source) - len(found) == (4 if head == "pretraining" else 0)
    back = flatten(interop.to_variables(found, variables))
    for name, value in flatten(variables).items():
        np.testing.assert_array_equal(back[name], value)
    options = interop.model_options(found)
    assert options[""]["head"] == head
    assert options["model"]["visual"]["name"] == network
    assert options["model"]["layers"] == 1
    assert options["text"]["vocabulary_size"] == 200


def test_a_checkpoint_goes_through_files_and_back(root, tmp_path):
    config = smoke(root)
    variables = made(config)
    torch_files.save(tmp_path / "snps3.pth", interop.file_content(interop.to_state_dict(variables), 3))
    arrays = references.read_arrays("snps3", tmp_path / "snps3.pth")
    options = {"model.heads": 2, "model.visual.window": (8, 7, 7), "text.length": 12, "model.num_answers": 20}
    found = convert.convert("snps3", tmp_path / "snps3.pth", tmp_path / "converted", options)
    assert found.arrays == len(arrays)
    assert convert.revert(tmp_path / "converted", tmp_path / "again.pth") == len(interop.to_state_dict(variables))
    again = torch_files.load(tmp_path / "again.pth")["model"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def parts(root, network="swin"):
    """Return the files that a run starts from, as state dicts with the names of their publishers."""
    source = interop.to_state_dict(made(smoke(root, "retrieval", network)))
    text, image = "model.module.text_encoder.", "model.module.img_encoder."
    bert = {f"bert.{name.removeprefix(text)}": array for name, array in source.items() if name.startswith(text)}
    bert = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): array for name, array in bert.items()}
    bert |= {"cls.predictions.bias": np.zeros(200, np.float32), "cls.seq_relationship.weight": np.zeros((2, 64))}
    prefix, _ = interop.NETWORKS[network]
    visual = {
        name.removeprefix(f"{image}{prefix}."): array
        for name, array in source.items()
        if name.startswith(f"{image}{prefix}.")
    }
    if network == "resnet":
        visual |= {"fc.weight": np.zeros((10, 4)), "bn1.num_batches_tracked": np.array(3)}
    if network == "pvt":
        visual |= {"head.weight": np.zeros((10, 4))}
    return bert, visual


@pytest.mark.parametrize("network", SMALL)
def test_a_run_starts_from_bert_and_a_visual_network(root, tmp_path, network):
    bert, visual = parts(root, network)
    torch_files.save(tmp_path / "bert.pth", bert)
    torch_files.save(tmp_path / "visual.pth", {"state_dict": visual} if network == "swin" else visual)
    config = smoke(root, "retrieval", network)
    config.init_from = (str(tmp_path / "bert.pth"), str(tmp_path / "visual.pth"))
    config.init_fresh = ("^similarity/", "^visual/(img_fc|output_proj)")
    said = []
    task = get_task(config)
    setup = prepare(task, config, sharding.make_mesh(config.mesh), total_steps=3, steps_per_epoch=3)
    state = initialise(task, config, setup, said.append)
    found = state.params["bert"]
    np.testing.assert_array_equal(found["word_embeddings"], bert["bert.embeddings.word_embeddings.weight"])
    np.testing.assert_array_equal(found["embeddings_norm"]["scale"], bert["bert.embeddings.LayerNorm.gamma"])
    np.testing.assert_array_equal(found["cross_pooler"]["dense"]["bias"], found["pooler"]["dense"]["bias"])
    keys = state.model_state["momentum"]["encoders"]
    np.testing.assert_array_equal(keys["bert"]["word_embeddings"], found["word_embeddings"])
    own = {name: tree["network"] for name, tree in (("visual", state.params["visual"]), ("key", keys["visual"]))}
    jax.tree.map(np.testing.assert_array_equal, own["visual"], own["key"])
    if network == "resnet":
        frozen = state.model_state["frozen"]["visual"]["network"]["conv1"]["bn"]["mean"]
        np.testing.assert_array_equal(frozen, visual["bn1.running_mean"])
    assert any("bert.pth" in line and "0 unused" in line.replace("none unused", "0 unused") for line in said)


def test_a_file_of_one_network_is_no_whole_model(root, tmp_path):
    torch_files.save(tmp_path / "bert.pth", parts(root)[0])
    with pytest.raises(ConversionError, match="a file of bert alone, which gives no whole model"):
        convert.convert("snps3", tmp_path / "bert.pth", tmp_path / "out")


def test_unknown_names_are_listed_and_other_files_are_one_line(root):
    source = interop.to_state_dict(made(smoke(root, "retrieval")))
    with pytest.raises(ConversionError, match=r"model\.extra\.weight"):
        interop.to_variables(interop.state_dict({**source, "model.extra.weight": np.zeros(3)}))
    for content in ({}, [1], {"a.weight": np.zeros(1)}):
        with pytest.raises(ConversionError, match="not an SNP-S3 checkpoint") as error:
            interop.state_dict(content)
        assert "\n" not in str(error.value)


def test_the_projection_that_fails_in_the_reference_is_ignored(root):
    source = interop.to_state_dict(made(smoke(root, "retrieval", "pvt")))
    found = interop.to_variables({**source, "model.module.img_encoder.img_proj": np.zeros((512, 768))})
    assert flatten(found).keys() == flatten(interop.to_variables(source)).keys()


def test_a_source_without_a_head_must_be_named(root, tmp_path):
    config = smoke(root, "question_answering")
    torch_files.save(tmp_path / "bert.pth", parts(root)[0])
    config.init_from, config.init_fresh = (str(tmp_path / "bert.pth"),), ()
    task = get_task(config)
    setup = prepare(task, config, sharding.make_mesh(config.mesh), total_steps=3, steps_per_epoch=3)
    with pytest.raises(ConfigError, match="no source gives") as error:
        initialise(task, config, setup, print)
    assert "\n" not in str(error.value)

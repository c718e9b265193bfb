"""Checkpoints of mmaction2, both ways: detectors, recognisers, published files."""

import pickle
import sys
import types

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import convert, references
from vlm_jax.errors import ConfigError
from vlm_jax.interop import torch_files
from vlm_jax.interop.rules import ConversionError, flatten
from vlm_jax.systems.lfb import interop
from vlm_jax.task import get_task
from vlm_jax.train import sharding
from vlm_jax.train.checkpoint import restore_variables
from vlm_jax.train.initialise import initialise
from vlm_jax.train.setup import prepare

ENTRIES = {"none": 320, "avg": 320, "max": 320, "non_local": 344}


def smoke(root, operator="non_local", **model):
    config = configs.load(str(root / "configs/lfb_nl.py:smoke"))
    with config.unlocked():
        config.model.update(operator=operator, bank_dim=256, **model)
    return config


def made(config):
    """Return variables of a model, every number its own."""
    rng = np.random.default_rng(0)
    shapes = get_task(config).abstract_variables()
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("operator", "model"),
    [
        ("none", {}),
        ("none", {"mlp_head": True}),
        ("max", {}),
        ("non_local", {}),
        ("non_local", {"non_local_layers": 1}),
    ],
)
def test_there_and_back(root, operator, model):
    config = smoke(root, operator, **model)
    variables = made(config)
    source = interop.to_state_dict(variables)
    back = flatten(interop.to_variables(source, variables))
    for name, value in flatten(variables).items():
        np.testing.assert_array_equal(back[name], value)
    options = interop.model_options(source)
    assert options["model"]["operator"] == operator
    assert options["model"]["width"] == 0.125
    assert options["model"]["blocks"] == (1, 1, 1, 1)
    assert options["model"]["mlp_head"] == model.get("mlp_head", False)
    assert options["model"].get("non_local_layers", 2) == config.model.non_local_layers
    assert options["data"]["num_classes"] == 81


@pytest.mark.parametrize("operator", list(ENTRIES))
def test_names_of_the_published_files(operator):
    """A published file has this number of entries, batch norms' counters included."""
    config = references.configs.system_module("lfb", "config").default_config()
    config.model.operator = operator
    shapes = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), get_task(config).abstract_variables()
    )
    names = interop.to_state_dict(shapes)
    assert len(names) == ENTRIES[operator]
    trained = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert operator != "non_local" or trained == 36_043_409
    assert names["backbone.layer3.5.conv1.conv.weight"].shape == (256, 1024, 3, 1, 1)
    assert names["backbone.layer4.0.downsample.conv.weight"].shape == (2048, 1024, 1, 1, 1)
    if operator == "non_local":
        assert names["roi_head.shared_head.fbo.non_local_layer_2.ln.weight"].shape == (512, 1, 1, 1)


def test_a_recogniser_starts_a_detector(root, tmp_path):
    """Only the backbone is taken; the classifier of actions of whole clips is ignored."""
    config = smoke(root)
    source = {name: value for name, value in interop.to_state_dict(made(config)).items() if "roi_head" not in name}
    source["cls_head.fc_cls.weight"] = np.zeros((400, 256), np.float32)
    source["cls_head.fc_cls.bias"] = np.zeros(400, np.float32)
    torch_files.save(tmp_path / "kinetics.pth", {"meta": {}, "state_dict": source})
    with config.unlocked():
        config.init_from = ({"source": str(tmp_path / "kinetics.pth"), "system": "lfb"},)
        config.init_fresh = ("^classifier/", "^fbo/")
    task, lines = get_task(config), []
    setup = prepare(task, config, sharding.make_mesh(config.mesh), total_steps=1, steps_per_epoch=1)
    state = initialise(task, config, setup, lines.append)
    kernel = state.params["backbone"]["layer2"]["0"]["conv2"]["conv"]["kernel"]
    expected = source["backbone.layer2.0.conv2.conv.weight"]
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 4, 1, 0))
    assert "classifier" not in lines[0]
    with pytest.raises(ConversionError, match="a recogniser, not a detector"):
        convert.convert("lfb", tmp_path / "kinetics.pth", tmp_path / "ours")


def test_a_published_file_is_converted_and_written_back(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = smoke(root, "avg")
    source = interop.to_state_dict(made(config))
    file = tmp_path / "lfb_avg.pth"
    torch_files.save(file, {"meta": {"epoch": 20}, "state_dict": source})
    entry = interop.RELEASED["lfb_avg_v0"]
    monkeypatch.setitem(
        interop.RELEASED, "lfb_avg_v0", interop.Released(file.as_uri(), entry.origin, options=entry.options)
    )
    folder = convert.checkpoint_path("released:lfb_avg_v0")
    ours = configs.find(folder)
    # What the file does not tell: max has the same arrays, and 1.x other frames.
    assert (ours.model.operator, ours.clips.frame_shift) == ("avg", 0)
    assert ours.bank.source.checkpoint == "released:lfb_baseline_v0"
    variables = restore_variables(folder, get_task(ours).abstract_variables())
    assert variables["params"]["classifier"]["fc_cls"]["kernel"].shape == (512, 81)
    assert convert.revert("released:lfb_avg_v0", tmp_path / "back.pth") == len(source)
    back = torch_files.load(tmp_path / "back.pth")["state_dict"]
    for name, value in source.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_what_is_no_checkpoint_is_one_line():
    with pytest.raises(ConversionError, match=r"it has no 'backbone.conv1.conv.weight' \(its first name is 'a'\)"):
        interop.state_dict({"state_dict": {"a": np.zeros(1)}})
    with pytest.raises(ConversionError, match="expected a state dict, found a list"):
        interop.state_dict([])


def test_unknown_missing_and_misshapen_names_are_listed(root):
    variables = made(smoke(root))
    source = interop.to_state_dict(variables)
    with pytest.raises(ConversionError, match=r"roi_head\.extra\.weight"):
        interop.to_variables(source | {"roi_head.extra.weight": np.zeros(1)}, variables)
    wrong = source | {"roi_head.bbox_head.fc_cls.bias": np.zeros(61, np.float32)}
    with pytest.raises(ConversionError, match=r"params/classifier/fc_cls/bias: got \(61,\), expected \(81,\)"):
        interop.to_variables(wrong, variables)
    del source["roi_head.shared_head.fbo.lt_feat_conv.bias"]
    with pytest.raises(ConversionError, match="params/fbo/lt_feat_conv/bias"):
        interop.to_variables(source, variables)


def test_logs_in_a_checkpoint_do_not_keep_it_from_being_read(tmp_path, monkeypatch):
    """Checkpoints of mmengine carry their logged values as objects of a class that is not installed here."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def mean(self):
            raise AssertionError

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    HistoryBuffer.mean.__module__ = module.__name__
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    logged = HistoryBuffer()
    logged._log_history, logged._methods = np.arange(3.0), {"mean": HistoryBuffer.mean}
    content = {"message_hub": {"log_scalars": {"train/loss": logged}}, "meta": {"epoch": 20}}
    path = tmp_path / "logged.pkl"
    path.write_bytes(pickle.dumps(content, 2))  # the protocol of torch.save
    read = torch_files.load_pickle(path)
    found = read["message_hub"]["log_scalars"]["train/loss"]
    np.testing.assert_array_equal(found["_log_history"], np.arange(3.0))
    assert read["meta"] == {"epoch": 20}


def test_an_unknown_operator_is_named(root):
    with pytest.raises(ConfigError, match=r"config\.model\.operator"):
        get_task(smoke(root, "mean"))

"""GroundNLQ's checkpoints become ours, with the config that fits them."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vlm_jax import config as configs
from vlm_jax.convert import convert, revert
from vlm_jax.interop import torch_files
from vlm_jax.interop.rules import ConversionError
from vlm_jax.systems.groundnlq import interop as names
from vlm_jax.systems.groundnlq.model import GroundNLQ
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import restore_variables
from vlm_jax.train.step_folders import MANIFEST

SMALL = GroundNLQ(dim=8, head_dim=8, text_blocks=1, stem_blocks=1)


def released(path, model):
    """A file as the reference writes it, and the two state dicts in it."""
    inputs = jnp.zeros((1, 64, 6)), jnp.ones((1, 64), bool), jnp.zeros((1, 3, 5)), jnp.ones((1, 3), bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    raw = names.to_state_dict(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes))
    average = {name: value + np.float32(1) for name, value in raw.items()}
    torch_files.save(path, {"epoch": 5, "state_dict": raw, "state_dict_ema": average})
    return raw, average


@pytest.mark.parametrize("star", [False, True])
def test_a_released_file_becomes_a_checkpoint(tmp_path, star):
    model = dataclasses.replace(SMALL, cross_blocks=6, plain_blocks=0) if star else SMALL
    raw, average = released(tmp_path / "epoch_005.pth.tar", model)
    for name, source in (("raw", raw), ("average", average)):
        found = convert("groundnlq", tmp_path / "epoch_005.pth.tar", tmp_path / name, average=name == "average")
        assert found.arrays == len(source)
        config = configs.find(tmp_path / name)
        assert (config.model.cross_blocks, config.model.plain_blocks) == ((6, 0) if star else (0, 6))
        assert (config.model.video_dim, config.model.text_dim, config.model.dim) == (6, 5, 8)
        restored = restore_variables(tmp_path / name, get_task(config).abstract_variables())
        back = names.to_state_dict(jax.device_get(restored))
        assert back.keys() == source.keys()
        assert all(np.array_equal(back[key], source[key]) for key in source)


def test_ours_becomes_a_file_of_the_reference(tmp_path):
    raw, average = released(tmp_path / "epoch_005.pth.tar", SMALL)
    convert("groundnlq", tmp_path / "epoch_005.pth.tar", tmp_path / "ours")
    revert(tmp_path / "ours", tmp_path / "epoch_003.pth.tar", epoch=3)
    found = torch_files.load(tmp_path / "epoch_003.pth.tar")
    assert (list(found), found["epoch"]) == (["epoch", "state_dict"], 3)
    assert not any(name.startswith("module.") for name in found["state_dict"])
    assert found["state_dict"].keys() == raw.keys()
    assert all(np.array_equal(found["state_dict"][name], array) for name, array in raw.items())
    with pytest.raises(ConversionError, match="holds no running average"):
        revert(tmp_path / "ours", tmp_path / "mine.pth.tar", average=True)
    with pytest.raises(ConversionError, match=r"end in [.]pth, found [.]pdparams"):
        revert(tmp_path / "ours", tmp_path / "mine.pdparams")
    # As the checkpoint of a run, which holds both.
    trees = {"params": names.to_variables(raw)["params"], "ema_params": names.to_variables(average)["params"]}
    shutil.rmtree(tmp_path / "ours" / "state")
    (tmp_path / "ours" / MANIFEST).unlink()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "ours" / "state").absolute(), trees)
    revert(tmp_path / "ours", tmp_path / "mine.pth.tar", average=True)
    found = torch_files.load(tmp_path / "mine.pth.tar")
    assert list(found) == ["epoch", "state_dict", "state_dict_ema"]
    for key, source in (("state_dict", raw), ("state_dict_ema", average)):
        assert found[key].keys() == source.keys()
        assert all(np.array_equal(found[key][name], array) for name, array in source.items())


def test_systems_without_an_average_say_so(tmp_path):
    with pytest.raises(ConversionError, match="files of ctrl hold no running average"):
        convert("ctrl", tmp_path / "TALL.pdparams", tmp_path / "out", average=True)

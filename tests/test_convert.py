"""`released:NAME` as a checkpoint: fetched, converted, kept."""

import dataclasses

import numpy as np
import pytest

from vlm_jax import convert, references
from vlm_jax.interop import paddle_files
from vlm_jax.interop.rules import ConversionError
from vlm_jax.systems.ctrl import interop
from vlm_jax.train import sharding
from vlm_jax.train.checkpoint import restore_variables
from vlm_jax.train.initialise import initialise
from vlm_jax.train.setup import prepare

SHAPES = {
    "v2s_lt_weights": (24, 16),
    "s2s_lt_weights": (10, 16),
    "mid_out_weights": (12, 64, 1, 1),
    "sim_mat_weights": (3, 12, 1, 1),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = tmp_path / "TALL.pdparams"
    rng = np.random.default_rng(0)
    paddle_files.save(source, {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()})
    entry = dataclasses.replace(interop.RELEASED["ctrl"], url=source.as_uri())
    monkeypatch.setitem(interop.RELEASED, "ctrl", entry)
    return tmp_path


def test_a_released_checkpoint_is_converted_at_first_use(home):
    folder = convert.checkpoint_path("released:ctrl")
    assert folder == home / "home" / ".cache" / "vlm_jax" / "released" / "ctrl" / "checkpoint"
    config = convert.configs.find(folder)
    variables = restore_variables(folder, convert.get_task(config).abstract_variables())
    expected = paddle_files.load(home / "TALL.pdparams")["v2s_lt_weights"]
    np.testing.assert_array_equal(variables["params"]["clip_projection"]["kernel"], expected)
    (home / "TALL.pdparams").unlink()
    assert convert.checkpoint_path("released:ctrl") == folder, "what is there is not fetched again"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["TALL.pdparams", "checkpoint"]


def test_a_released_checkpoint_is_a_source_of_every_command(home):
    assert convert.convert("ctrl", "released:ctrl", home / "ours").arrays == 4
    with pytest.raises(ConversionError, match="released:ctrl: a checkpoint of ctrl, not of milnce"):
        convert.convert("milnce", "released:ctrl", home / "other")
    assert convert.revert("released:ctrl", home / "back.pdparams") == 4
    back, expected = (paddle_files.load(home / name) for name in ("back.pdparams", "TALL.pdparams"))
    assert all(np.array_equal(back[name], array) for name, array in expected.items())
    config = convert.configs.find(home / "ours")
    config.init_from = ("released:ctrl",)
    task, lines = convert.get_task(config), []
    setup = prepare(task, config, sharding.make_mesh(config.mesh), total_steps=1, steps_per_epoch=1)
    state = initialise(task, config, setup, lines.append)
    np.testing.assert_array_equal(state.params["clip_projection"]["kernel"], expected["v2s_lt_weights"])
    assert lines[0] == "released:ctrl: 4 arrays taken, none left fresh, none unused"


def test_a_file_that_is_none_leaves_nothing_half_made(home):
    (home / "TALL.pdparams").write_bytes(b"an error page")
    with pytest.raises(ValueError, match=r"TALL\.pdparams: damaged"):
        convert.checkpoint_path("released:ctrl")
    folder = home / "home" / ".cache" / "vlm_jax" / "released" / "ctrl"
    assert [path.name for path in folder.iterdir()] == ["TALL.pdparams"]


def test_other_paths_stay(tmp_path):
    assert convert.checkpoint_path(str(tmp_path)) == tmp_path
    with pytest.raises(ConversionError, match="not one of released:"):
        convert.checkpoint_path("released:mine")


def test_every_published_checkpoint_has_an_address_or_a_name():
    known = references.released_checkpoints()
    assert {"ctrl", "groundnlq", "groundnlq_star", "milnce"} <= known.keys()
    for _, entry in known.values():
        assert all(url.startswith("https://") for url in (entry.url, *entry.beside.values()) if "/" in url)

"""A new run's variables: from several sources, with what stays fresh named, and mistakes told in one line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.errors import ConfigError
from vlm_jax.interop import torch_files
from vlm_jax.interop.rules import ConversionError
from vlm_jax.systems.milnce import interop as milnce_names
from vlm_jax.task import Aux, Task, get_task
from vlm_jax.train import sharding
from vlm_jax.train.checkpoint import CheckpointError, save_variables
from vlm_jax.train.initialise import check_sources, initialise
from vlm_jax.train.loop import train
from vlm_jax.train.setup import prepare

SMOKE = "configs/milnce_howto100m.py:smoke"


def branches(**changes):
    """Two branches with statistics, a head, and a copy of one branch in the model state."""
    specs = {"x": jax.ShapeDtypeStruct((4, 3), np.float32)}

    def init(key, batch):
        del batch
        shapes = {"video": {"scale": (3,)}, "text": {"scale": (3,)}, "head": {"kernel": (3, 2)}}
        params = jax.tree.map(lambda shape: jax.random.normal(key, shape), shapes, is_leaf=lambda s: type(s) is tuple)
        stats = {"video": {"mean": jnp.zeros(3)}, "text": {"mean": jnp.zeros(3)}}
        return {"params": params, "batch_stats": stats, "counts": {"seen": jnp.zeros(())}}

    def loss_fn(params, model_state, batch, key):
        del key
        return jnp.mean((batch["x"] @ params["head"]["kernel"]) ** 2), Aux({}, model_state)

    task = Task("toy", {"": specs}, init, loss_fn, lambda shard: None, {}, {}, run_state=("counts",))
    return dataclasses.replace(task, **changes)


def start(task, config, lines=None):
    """The state of a new run."""
    mesh = sharding.make_mesh(config.mesh)
    setup = prepare(task, config, mesh, total_steps=1, steps_per_epoch=1)
    return initialise(task, config, setup, (lines if lines is not None else []).append)


def encoder(folder, value, width=3, **more):
    """A checkpoint of one encoder, filled with a value."""
    variables = {
        "params": {"encoder": {"scale": np.full(width, value, np.float32)}, **more},
        "batch_stats": {"encoder": {"mean": np.full(width, value + 0.5, np.float32)}},
    }
    save_variables(folder, variables, {})
    return str(folder)


def test_two_sources_into_two_branches(tmp_path):
    video = {"source": encoder(tmp_path / "a", 1.0), "read": "encoder", "write": "video"}
    text = {"source": encoder(tmp_path / "b", 2.0, old={"bias": np.zeros(4)}), "read": "encoder/", "write": "text"}
    config, lines = toy.make_config(init_from=(video, text), init_fresh=("^head/",), batch_size=4), []
    state = start(branches(), config, lines)
    for branch, value in (("video", 1.0), ("text", 2.0)):
        np.testing.assert_array_equal(state.params[branch]["scale"], np.full(3, value))
        np.testing.assert_array_equal(state.model_state["batch_stats"][branch]["mean"], np.full(3, value + 0.5))
    fresh = start(branches(), toy.make_config(batch_size=4))
    np.testing.assert_array_equal(state.params["head"]["kernel"], fresh.params["head"]["kernel"])
    assert lines == [
        f"{video['source']}: 2 arrays taken, none left fresh, none unused",
        f"{text['source']}: 2 arrays taken, none left fresh, none unused",
        "initialised 4 arrays from 2 sources, 1 fresh (params/head/kernel)",
    ]


def test_what_the_model_does_not_take_is_told(tmp_path):
    more = {"old": {f"bias{n}": np.zeros(4, np.float32) for n in range(5)}, "head": {"kernel": np.ones((3, 2), "f4")}}
    whole = {"video": {"scale": np.ones(3, "f4")}, "text": {"scale": np.ones(3, "f4")}, **more}
    stats = {branch: {"mean": np.ones(3, "f4")} for branch in ("video", "text")}
    save_variables(tmp_path / "a", {"params": whole, "batch_stats": stats, "counts": {"seen": np.ones(7)}}, {})
    lines = []
    config = toy.make_config(init_from=(str(tmp_path / "a"),), init_fresh=("head", "text/mean"), batch_size=4)
    state = start(branches(), config, lines)
    assert lines[0] == (
        f"{tmp_path / 'a'}: 3 arrays taken, 2 left fresh (batch_stats/text/mean, params/head/kernel), "
        "5 unused (params/old/bias0, params/old/bias1, params/old/bias2, ...)"
    ), "the counts of another run are nobody's business"
    np.testing.assert_array_equal(state.model_state["batch_stats"]["text"]["mean"], np.zeros(3))
    # With the collection in front, an expression means that collection alone.
    start(branches(), toy.make_config(**config_of(config, init_fresh=("^params/head", "^batch_stats/text"))), lines)
    assert "2 fresh (batch_stats/text/mean, params/head/kernel)" in lines[-1]


def config_of(config, **changes):
    return {"init_from": config.init_from, "init_fresh": config.init_fresh, "batch_size": 4, **changes}


def test_what_cannot_be_is_one_line(tmp_path):
    video = {"source": encoder(tmp_path / "a", 1.0), "read": "encoder", "write": "video"}
    text = {**video, "write": "text"}
    other = {**text, "source": encoder(tmp_path / "b", 2.0)}
    wide = {**text, "source": encoder(tmp_path / "wide", 2.0, width=5)}
    head = {"init_fresh": ("^head/",)}
    for changes, error, message in (
        ({"init_from": (video, text)}, ConfigError, r"no source gives params/head/kernel; name .* config.init_fresh$"),
        ({"init_from": (video,)}, ConfigError, r"no source gives batch_stats/text/mean \(and 2 more\)"),
        (
            {"init_from": (video, wide), **head},
            CheckpointError,
            r"wide: its batch_stats/encoder/mean is \(5,\), the model's batch_stats/text/mean is \(3,\) \(and 1 more\)",
        ),
        (
            {"init_from": (video, text, other), **head},
            ConfigError,
            rf"text/mean is given by {tmp_path / 'a'} and by {tmp_path / 'b'}; the key 'fresh'",
        ),
        (
            {"init_from": (str(tmp_path / "a"),), **head},
            CheckpointError,
            r"a: none of its 2 arrays, such as batch_stats/encoder/mean, is taken by the model; it has batch",
        ),
        ({"init_from": ({**video, "read": "enc"}, text), **head}, CheckpointError, r"\(read 'enc', write 'video'\)"),
        (
            {"init_from": (video, text), "init_fresh": ("^haed/",)},
            ConfigError,
            "init_fresh: '.haed/' matches no variab",
        ),
        ({"init_from": (video, text), "init_fresh": ("(",)}, ConfigError, r"init_fresh: '\(' is no regular expression"),
        (
            {"init_from": ({**video, "fresh": ("text",)},)},
            ConfigError,
            r"init_from\[0\].fresh: 'text' matches no variable",
        ),
        ({"init_from": (video, {"sorce": "x"})}, ConfigError, r"init_from\[1\]: 'sorce' is not one of source, read, "),
        (
            {"init_from": ({**video, "write": "vid"},)},
            ConfigError,
            r"\[0\].write: the model has nothing below 'vid'; it has",
        ),
        ({"init_from": ({"read": "x"},)}, ConfigError, r"init_from\[0\].source: expected a path or released:NAME"),
        ({"init_from": ({**video, "average": 1},)}, ConfigError, r"init_from\[0\].average: expected bool, found 1"),
        ({"init_from": ({**video, "average": True},)}, CheckpointError, "holds no running average"),
        ({"init_from": (str(tmp_path / "none"),)}, CheckpointError, "checkpoint .*none: no checkpoint there"),
        ({"init_from": ("released:mine",)}, ConversionError, "released:mine: not one of released:"),
    ):
        with pytest.raises(error, match=message) as said:
            start(branches(), toy.make_config(batch_size=4, **changes))
        assert "\n" not in str(said.value)


def test_one_of_two_sources_leaves_an_array_to_the_other(tmp_path):
    video = {"source": encoder(tmp_path / "a", 1.0), "read": "encoder", "write": "video"}
    text = {**video, "write": "text", "fresh": ("^text/mean",)}
    other = {"source": encoder(tmp_path / "b", 2.0), "read": "encoder", "write": "text", "fresh": ["scale"]}
    lines, config = [], toy.make_config(init_from=(video, text, other), init_fresh=("^head/",), batch_size=4)
    state = start(branches(), config, lines)
    assert float(state.params["text"]["scale"][0]) == 1.0
    assert float(state.model_state["batch_stats"]["text"]["mean"][0]) == 2.5
    assert lines[1].endswith("a: 1 arrays taken, 1 left fresh (batch_stats/text/mean), none unused")
    # Where no other one has it, it is fresh.
    state = start(branches(), toy.make_config(init_from=(video, text), init_fresh=("^head/",), batch_size=4))
    assert float(state.model_state["batch_stats"]["text"]["mean"][0]) == 0


def test_after_init_sees_what_was_loaded_and_a_resume_does_not_call_it(tmp_path):
    seen = []

    def after_init(variables):
        seen.append(float(variables["params"]["bias"][0]))
        return {**variables, "params": {**variables["params"], "kernel": variables["params"]["kernel"] + 1}}

    source = save_toy(tmp_path / "source")
    config = toy.make_config(init_from=(str(tmp_path / "source"),), steps=1, schedule__learning_rate=0.0)
    task = dataclasses.replace(toy.make_task(config), after_init=after_init)
    state = train(task, config, tmp_path / "run")
    np.testing.assert_allclose(state.params["kernel"], source["params"]["kernel"] + 1)
    assert seen == [3.0]
    (tmp_path / "source").rename(tmp_path / "gone")
    longer = toy.make_config(init_from=(str(tmp_path / "source"),), steps=2, schedule__learning_rate=0.0)
    train(task, longer, tmp_path / "run")
    assert seen == [3.0]
    assert "init_from" in json.loads((tmp_path / "run" / "config.json").read_text())
    # Without any source it is called, too.
    config = toy.make_config(steps=1)
    train(dataclasses.replace(toy.make_task(config), after_init=after_init), config, tmp_path / "scratch")
    assert seen == [3.0, 0.0]


def save_toy(folder):
    kernel = np.arange(8, dtype=np.float32).reshape(4, 2)
    variables = {"params": {"kernel": kernel, "bias": np.full(2, 3.0, np.float32)}, "stats": {"seen": np.int32(5)}}
    save_variables(folder, variables, {})
    return variables


@pytest.fixture
def installed():
    with toy.installed():
        yield configs.system_module("toy", "interop")


def test_a_reference_file_is_a_source(tmp_path, installed):
    kernel = np.arange(8, dtype=np.float64).reshape(2, 4)
    arrays = {"linear.weight": kernel, "linear.bias": np.ones(2), "seen": np.array([9])}
    torch_files.save(tmp_path / "toy.pth", {**arrays, "seen": np.array(9)})
    lines, config = [], toy.make_config(init_from=(str(tmp_path / "toy.pth"),))
    state = start(toy.make_task(config), config, lines)
    np.testing.assert_array_equal(state.params["kernel"], kernel.T)
    assert state.params["kernel"].dtype == jnp.float32
    assert int(state.model_state["stats"]["seen"]) == 9
    assert lines[0] == f"{tmp_path / 'toy.pth'}: 3 arrays taken, none left fresh, none unused"
    source = {"source": str(tmp_path / "toy.pth"), "system": "milnce"}
    with pytest.raises(ConversionError, match="not a MIL-NCE checkpoint"):
        start(toy.make_task(config), toy.make_config(init_from=(source,)))
    with pytest.raises(ConfigError, match=r"'nobody' is not one of ctrl, .*, toy, the systems whose"):
        start(toy.make_task(config), toy.make_config(init_from=({**source, "system": "nobody"},)))
    with pytest.raises(ConversionError, match="files of milnce hold no running average"):
        start(toy.make_task(config), toy.make_config(init_from=({**source, "average": True},)))


def test_a_released_checkpoint_is_a_source(tmp_path, installed, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / "toy.pth"
    torch_files.save(
        file, {"linear.weight": np.ones((2, 4), "f4"), "linear.bias": np.ones(2, "f4"), "seen": np.array(9)}
    )
    monkeypatch.setitem(installed.RELEASED, "toy", dataclasses.replace(installed.RELEASED["toy"], url=file.as_uri()))
    lines, config = [], toy.make_config(init_from=("released:toy",))
    state = start(toy.make_task(config), config, lines)
    np.testing.assert_array_equal(state.params["kernel"], np.ones((4, 2)))
    assert lines[0].startswith("released:toy: 3 arrays taken")


def test_the_average_of_a_run(tmp_path):
    config = toy.make_config(optimizer__ema_decay=0.5, steps=3)
    source = train(toy.make_task(config), config, tmp_path / "source")
    entry = {"source": str(tmp_path / "source"), "average": True}
    state = start(toy.make_task(config), toy.make_config(init_from=(entry,)))
    np.testing.assert_array_equal(state.params["kernel"], source.ema_params["kernel"])
    assert not np.array_equal(state.params["kernel"], source.params["kernel"])
    assert int(state.model_state["stats"]["seen"]) == 24


@pytest.fixture(scope="module")
def pretrained(root, tmp_path_factory):
    """A MIL-NCE checkpoint, and the same as the reference's file."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = small(root)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), get_task(config).abstract_variables()
    )
    save_variables(folder / "ours", variables, {})
    configs.write(config, folder / "ours" / "config.json")
    torch_files.save(folder / "theirs.pth", milnce_names.to_state_dict(variables))
    return folder, variables


def small(root, *words):
    config = configs.load(str(root / SMOKE), ["--config.mesh.data=4", "--config.batch_groups=4", *words])
    config.model.blocks, config.batch_size = ("3b",), 4
    return config


@pytest.mark.parametrize("file", ["ours", "theirs.pth"])
def test_a_pretrained_s3d_under_a_head_of_another_width(root, pretrained, file):
    folder, variables = pretrained
    config = small(root, "--config.model.embedding_dim=16", f"--config.init_from={folder / file}")
    with pytest.raises(CheckpointError, match=r"fc2/bias is \(32,\), the model's params/.*/bias is \(16,\) \(and 3"):
        start(get_task(config), config)
    config.init_fresh = ("^video/fc/", "^text/fc2/")
    lines = []
    state = start(get_task(config), config, lines)
    assert state.params["video"]["fc"]["kernel"].shape[1] == 16
    for collection in ("batch_stats", "frozen"):
        ours, theirs = (jax.tree.leaves(tree[collection]) for tree in (state.model_state, variables))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    stem = state.params["video"]["conv1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(stem, variables["params"]["video"]["conv1"]["conv1"]["kernel"])
    assert "4 left fresh (params/text/fc2/bias, params/text/fc2/kernel, params/video/fc/bias, ...)" in lines[0]


def test_the_video_tower_alone_and_a_word_table_from_a_file(root, pretrained, tmp_path):
    folder, variables = pretrained
    torch_files.save(tmp_path / "word2vec.pth", np.full((100, 300), 7.0, np.float32))
    words = [f"--config.init_from={folder / 'ours'}", f"--config.text.word2vec={tmp_path / 'word2vec.pth'}"]
    config = small(root, *words)
    state = start(get_task(config), config)
    table = variables["frozen"]["text"]["word_embd"]
    np.testing.assert_array_equal(state.model_state["frozen"]["text"]["word_embd"], table)
    config.init_from = ({"source": str(folder / "ours"), "read": "video", "write": "video"},)
    config.init_fresh = ("^text/",)
    state = start(get_task(config), config)
    assert float(state.model_state["frozen"]["text"]["word_embd"].min()) == 7.0
    leaf = state.model_state["batch_stats"]["video"]["conv1"]["bn1"]["mean"]
    np.testing.assert_array_equal(leaf, variables["batch_stats"]["video"]["conv1"]["bn1"]["mean"])


def test_sources_of_features_must_be_those_of_the_checkpoint(tmp_path):
    config = toy.make_config()
    folder = tmp_path / "source"
    save_toy(folder)

    def reading(source, **more):
        config = ConfigDict({**toy.make_config().to_dict(), **more})
        config.data.video_source = source
        return config

    configs.write(reading("theirs"), folder / "config.json")
    for source in ("", "ours"):
        config = reading(source, init_from=(str(folder),))
        with pytest.raises(ConfigError, match=f"config.data.video_source: '{source}', but .* with 'theirs'$"):
            start(toy.make_task(config), config)
    config = reading("theirs", init_from=(str(folder),))
    start(toy.make_task(config), config)
    check_sources(reading("ours", task="milnce"), folder)  # of another system, whose key means another thing
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config.json in its folder or above"):
        start(toy.make_task(config), config)


def test_the_command_line_names_sources():
    config = toy.make_config()
    for text, found in {
        "runs/x": ("runs/x",),
        "'runs/x'": ("runs/x",),
        "released:milnce": ("released:milnce",),
        "('a','b')": ("a", "b"),
        "['a', {'source': 'b', 'read': 'video'}]": ("a", {"source": "b", "read": "video"}),
        "{'source': 'b'}": ({"source": "b"},),
        "": (),
    }.items():
        configs.apply_override(config, f"--config.init_from={text}")
        assert config.init_from == found
    configs.apply_override(config, "--config.evaluate.names=youcook2")
    assert config.evaluate.names == ["youcook2"]
    for word in ("init_from=(a", "init_from=5", "batch_size=many"):
        with pytest.raises(ConfigError, match=f"override {word.split('=')[0]}: expected (tuple|int), found"):
            configs.apply_override(config, f"--config.{word}")

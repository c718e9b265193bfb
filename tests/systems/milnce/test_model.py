"""S3D and the text tower beyond the golden cases: sizes, initial values, groups, precision."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.models.layers import BatchNorm
from vlm_jax.models.s3d import BLOCKS, S3D
from vlm_jax.systems.milnce.model import MilNce, TextTower
from vlm_jax.task import get_task
from vlm_jax.train.loop import train

NARROW = {"width": 0.125, "blocks": ("3b", "4b", "5b"), "embedding_dim": 16}


def narrow(**options):
    return S3D(**NARROW | options)


def abstract(model, *arguments):
    return jax.eval_shape(model.init, jax.random.key(0), *arguments)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameter_counts_are_the_published_ones():
    variables = abstract(MilNce(S3D(), TextTower()), jnp.zeros((1, 4, 32, 32, 3)), jnp.zeros((1, 20), int))
    assert count(variables["params"]["video"]) == 9_649_872
    assert count(variables["params"]["text"]) + count(variables["frozen"]) == 21_540_536
    assert "word_embd" not in variables["params"]["text"], "the frozen table must not be trained"


def test_every_branch_is_gated_and_so_is_conv_2c():
    params = abstract(S3D(), jnp.zeros((1, 4, 32, 32, 3)))["params"]
    assert params["gating"]["fc"]["kernel"].shape == (192, 192)
    for name, (b0, _, b1, _, b2, b3) in BLOCKS.items():
        for number, channels in enumerate((b0, b1, b2, b3)):
            assert params[f"mixed_{name}"][f"gating_b{number}"]["fc"]["kernel"].shape == (channels, channels)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((16, 224, 224), {"conv1": (8, 112, 112), "maxpool_4a": (4, 14, 14), "maxpool_5a": (2, 7, 7)}),
        ((32, 200, 200), {"maxpool_3a": (16, 25, 25), "maxpool_4a": (8, 13, 13), "maxpool_5a": (4, 7, 7)}),
        ((9, 33, 47), {"conv1": (5, 17, 24), "maxpool_2a": (5, 9, 12), "maxpool_4a": (3, 3, 3)}),
    ],
)
def test_stage_sizes(size, expected):
    model = narrow()
    outputs = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((1, *size, 3)))
    for stage, shape in expected.items():
        assert outputs["stages"][stage].shape[1:4] == shape


def test_initial_values_have_the_stated_distributions():
    def init(weight_init):
        model = MilNce(S3D(weight_init=weight_init, blocks=("5c",)), TextTower(rows=2000))
        return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)), jnp.zeros((1, 20), int))

    uniform = init("uniform")
    video = uniform["params"]["video"]
    fan_in = 3 * 3 * 7 * 7
    stem = np.asarray(video["conv1"]["conv1"]["kernel"])
    np.testing.assert_allclose(stem.std(), 1 / np.sqrt(3 * fan_in), rtol=0.02)
    assert 0.99 < np.abs(stem).max() * np.sqrt(fan_in) <= 1
    last = video["fc"]
    np.testing.assert_allclose(np.asarray(last["kernel"]).std(), 1 / np.sqrt(3 * 1024), rtol=0.02)
    assert 0.9 < np.abs(np.asarray(last["bias"])).max() * np.sqrt(1024) <= 1
    assert set(np.unique(video["conv1"]["bn1"]["scale"])) == {1.0}
    assert set(np.unique(video["conv1"]["bn1"]["bias"])) == {0.0}
    table = np.asarray(uniform["frozen"]["text"]["word_embd"])
    np.testing.assert_allclose([table.mean(), table.std()], [0, 1], atol=0.01)

    kaiming = init("kaiming_normal")["params"]["video"]
    stem = np.asarray(kaiming["conv1"]["conv1"]["kernel"])
    np.testing.assert_allclose(stem.std(), np.sqrt(2 / fan_in), rtol=0.02)
    assert np.abs(stem).max() > 3.5 * stem.std(), "the normal is not truncated"
    assert 0.99 < np.abs(np.asarray(kaiming["fc"]["kernel"])).max() * np.sqrt(1024) <= 1


def test_padding_takes_part_but_its_amount_does_not():
    tower = TextTower(rows=50, word_dim=8, hidden_dim=16, embedding_dim=4)
    words = np.array([[3, 7, 9]])
    variables = tower.init(jax.random.key(0), words)
    padded = [tower.apply(variables, np.pad(words, ((0, 0), (0, extra)))) for extra in (0, 1, 5)]
    np.testing.assert_array_equal(padded[1], padded[2])
    assert not np.allclose(padded[0], padded[1])


def test_groups_are_normalised_apart_and_the_first_is_remembered():
    norm = BatchNorm(groups=2)
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 2, 3, 3, 5)), jnp.float32)
    variables = norm.init(jax.random.key(0), x, True)
    assert float(variables["batch_stats"]["mean"].sum()) == 0, "initialising must not count as a step"
    both, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    alone, first = BatchNorm().apply(variables, x[:2], True, mutable=["batch_stats"])
    np.testing.assert_allclose(both[:2], alone, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated, first)
    rows = np.asarray(x[:2]).reshape(-1, 5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * rows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-4)


def test_bfloat16_computes_in_half_and_keeps_float32_where_it_counts():
    video = jnp.asarray(np.random.default_rng(0).random((2, 4, 32, 32, 3)), jnp.float32)
    full, half = narrow(), narrow(dtype=jnp.bfloat16)
    variables = jax.jit(full.init)(jax.random.key(0), video)
    exact = jax.jit(full.apply)(variables, video)["video_embedding"]
    rounded = jax.jit(half.apply)(variables, video)
    assert rounded["stages"]["mixed_5b"].dtype == jnp.bfloat16
    assert rounded["video_embedding"].dtype == jnp.float32
    assert 0 < np.abs(rounded["video_embedding"] - exact).max() < 0.05
    train = jax.eval_shape(lambda v, x: half.apply(v, x, True, mutable=["batch_stats"])[1], variables, video)
    assert {leaf.dtype for leaf in jax.tree.leaves(train)} == {jnp.dtype("float32")}


def test_a_swin_video_tower_is_a_change_of_the_config_and_trains(root, tmp_path):
    config = configs.load(str(root / "configs/milnce_quickstart.py:smoke"), ["--config.model.video=swin"])
    with config.unlocked():
        config.model.swin.update({"features": 8, "depths": (1, 1), "heads": (1, 2)})
    task = get_task(config)
    state = train(task, config, tmp_path)
    assert set(state.params["video"]) == {"network", "fc"}
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in logged if "loss" in line]).all()
    specs = next(iter(task.batch_specs.values()))
    start = task.init(jax.random.key(0), {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()})
    before, after = (tree["video"]["network"]["patch_embed"]["kernel"] for tree in (start["params"], state.params))
    assert np.abs(before - after).max() > 0

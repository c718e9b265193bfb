"""Detector of lfb: operators over slots, independent dropout, box features, and options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.errors import ConfigError
from vlm_jax.systems.lfb.bank_operators import NonLocalBank, Weights, pool_bank, project
from vlm_jax.systems.lfb.model import Classifier, RoiExtractor, adaptive_average
from vlm_jax.systems.lfb.task import make_model

ROWS = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
SLOTS = np.array([[[0, 1, -1, 5], [2, 2, -1, -1]], [[-1, -1, -1, -1], [3, 4, 5, 0]]], np.int32)


def gathered():
    """Return the content of every slot, `[B, N, L, C]`, zeros where it is empty."""
    padded = np.concatenate([ROWS, np.zeros_like(ROWS[:, :1])], 1)
    return np.stack([own[slots] for own, slots in zip(padded, SLOTS, strict=True)])


def test_avg_and_max_count_empty_slots_as_zeros():
    np.testing.assert_allclose(pool_bank(ROWS, SLOTS, "avg"), gathered().mean(2), rtol=1e-6)
    np.testing.assert_array_equal(pool_bank(ROWS, SLOTS, "max"), gathered().max(2))
    assert not np.asarray(pool_bank(ROWS, SLOTS, "max"))[1, 0].any()


@pytest.mark.parametrize(
    "options", [{}, {"pre_activate": False}, {"with_norm": False}, {"use_scale": False}, {"layers": 1}]
)
def test_attention_equals_projecting_every_slot(options):
    """The reference projects each of the slots to a key and a value."""
    model = NonLocalBank(features=4, **{"layers": 2, **options})
    short = np.random.default_rng(1).normal(size=(2, 2, 8)).astype(np.float32)
    variables = model.init(jax.random.key(0), short, ROWS, SLOTS, False)
    variables = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), variables)
    params = variables["params"]

    def linear(x, own):
        return x @ own["kernel"] + own["bias"]

    def norm(x, own):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * own["scale"] + own["bias"]

    s, slots = linear(short, params["st_feat_conv"]), linear(gathered(), params["lt_feat_conv"])
    for number in range(model.layers):
        own = params[f"non_local_layer_{number + 1}"]
        key, value = linear(slots, own["lt_feat_conv"]), linear(slots, own["global_conv"])
        scores = np.einsum("bnc,bnlc->bnl", linear(s, own["st_feat_conv"]), key) / (2 if model.use_scale else 1)
        y = np.einsum("bnl,bnlc->bnc", jax.nn.softmax(scores), value)
        if model.pre_activate:
            y = norm(y, own["ln"]) if model.with_norm else y
            s = s + linear(np.maximum(y, 0), own["out_conv"])
        else:
            s = np.maximum(s + norm(linear(y, own["out_conv"]), own["ln"]), 0)
    np.testing.assert_allclose(model.apply(variables, short, ROWS, SLOTS, False), s, rtol=1e-4, atol=1e-5)


def test_dropout_is_drawn_for_every_box_and_slot():
    model = NonLocalBank(features=64, layers=1, dropout=0.5)
    short = np.ones((1, 2, 8), np.float32)
    slots = np.zeros((1, 2, 4), np.int32)  # two boxes alike
    variables = model.init(jax.random.key(0), short, ROWS[:1], slots, False)
    out = model.apply(variables, short, ROWS[:1], slots, True, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(out[0, 0], out[0, 1])
    same = model.apply(variables, short, ROWS[:1], slots, False)
    np.testing.assert_allclose(same[0, 0], same[0, 1], rtol=1e-6)


def test_zero_init_leaves_the_boxes_unchanged():
    model = NonLocalBank(features=4, zero_init_out=True)
    short = np.random.default_rng(1).normal(size=(2, 2, 8)).astype(np.float32)
    variables = model.init(jax.random.key(0), short, ROWS, SLOTS, False)
    weights = Weights(4).bind({"params": variables["params"]["st_feat_conv"]})(8)
    expected = project(short, weights, jnp.float32)
    np.testing.assert_allclose(model.apply(variables, short, ROWS, SLOTS, False), expected, rtol=1e-6)


def test_adaptive_average_is_that_of_torch():
    maps = np.arange(1 * 1 * 5 * 7, dtype=np.float32).reshape(1, 1, 5, 7, 1)
    found = np.asarray(adaptive_average(jnp.asarray(maps), 3))[0, 0, ..., 0]
    for p, (top, bottom) in enumerate([(0, 2), (1, 4), (3, 5)]):
        for q, (left, right) in enumerate([(0, 3), (2, 5), (4, 7)]):
            assert found[p, q] == pytest.approx(maps[0, 0, top:bottom, left:right].mean())
    padded = np.full((1, 1, 8, 9, 1), 1e6, np.float32)
    padded[:, :, :5, :7] = maps
    again = adaptive_average(jnp.asarray(padded), 3, jnp.array([[5, 7]]))
    np.testing.assert_allclose(np.asarray(again)[0, 0, ..., 0], found, rtol=1e-6)


def test_dropout_of_the_classifier_acts_on_cells_or_on_the_pooled_feature():
    features = jnp.ones((1, 1, 1, 8, 8, 32))
    for before in (True, False):
        model = Classifier(num_classes=3, dropout=0.5, dropout_before_pool=before)
        variables = model.init(jax.random.key(0), features, False)
        plain = model.apply(variables, features, False)
        dropped = model.apply(variables, features, True, rngs={"dropout": jax.random.key(1)})
        # Of 64 cells, some survive in every channel, and the maximum is a survivor, which is doubled.
        assert np.allclose(dropped, 2 * plain, rtol=1e-5) is before


def test_frames_may_stay_apart():
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4, 4, 2)), jnp.float32)
    boxes = jnp.array([[[0.0, 0.0, 60.0, 60.0]]])
    cells = RoiExtractor(output_size=2, time_pool="none").apply({}, maps, boxes)
    assert cells.shape == (1, 1, 3, 2, 2, 2)
    mean = RoiExtractor(output_size=2).apply({}, maps, boxes)
    np.testing.assert_allclose(cells.mean(2, keepdims=True), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("operator", "nl", "config.model.operator: 'nl' is not one of none, non_local, avg, max"),
        ("roi_time_pool", "mean", "config.model.roi_time_pool: 'mean' is not one of avg, max, none"),
        ("blocks", (3, 4, 6), "config.model.blocks: expected the number of blocks of 4 stages"),
    ],
)
def test_mistakes_are_named(root, key, value, message):
    config = configs.load(str(root / "configs/lfb_nl.py:smoke"))
    with config.unlocked():
        config.model[key] = value
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make_model(config)

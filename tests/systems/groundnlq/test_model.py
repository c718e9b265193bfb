"""Sizes, buckets and the first numbers of GroundNLQ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.systems.groundnlq.model import GroundNLQ

SMALL = GroundNLQ(
    dim=16, head_dim=16, heads=2, text_blocks=1, stem_blocks=1, plain_blocks=2, windows=(5,), max_length=128
)
LAST_STRIDE = 4


@functools.cache
def variables():
    """Random everywhere, so that nothing is hidden by ones, zeros and small scales."""
    inputs = jnp.zeros((1, 32, 6)), jnp.ones((1, 32), bool), jnp.zeros((1, 3, 5)), jnp.ones((1, 3), bool)
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes)


@functools.partial(jax.jit, static_argnames=("train", "dtype"))
def apply(variables, *inputs, train=False, seed=0, dtype=jnp.float32):
    return SMALL.clone(dtype=dtype).apply(variables, *inputs, train=train, rngs={"drop_path": jax.random.key(seed)})


def inputs(valid, length):
    rng = np.random.default_rng(1)
    video = np.zeros((1, length, 6), np.float32)
    video[:, :valid] = rng.normal(size=(1, valid, 6))
    text = rng.normal(size=(1, 3, 5)).astype(np.float32)
    return video, np.arange(length)[None] < valid, text, np.ones((1, 3), bool)


@pytest.mark.parametrize(("cross", "plain", "count"), [(0, 6, 32_527_498), (6, 0, 36_080_266)])
def test_published_sizes(cross, plain, count):
    model = GroundNLQ(cross_blocks=cross, plain_blocks=plain)
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, 64, 2304)),
        jnp.ones((1, 64), bool),
        jnp.zeros((1, 4, 512)),
        jnp.ones((1, 4), bool),
    )
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def difference(valid):
    """Largest one at positions that exist, between padding to 64 and to 128."""
    short, long = (apply(variables(), *inputs(valid, length)) for length in (64, 128))
    largest = 0.0
    for level, mask in enumerate(short.masks):
        count = int(mask.sum())
        for a, b in ((short.logits, long.logits), (short.offsets, long.offsets)):
            largest = max(largest, float(jnp.abs(a[level][:, :count] - b[level][:, :count]).max()))
    return largest


def test_padding_further_changes_nothing_after_one_free_position_a_level():
    """Free by the last stride at the finest level, and so by one at the coarsest; less is seen by the last level."""
    assert difference(64 - LAST_STRIDE) < 1e-4
    assert difference(64 - LAST_STRIDE - 3) < 1e-4
    assert difference(64 - LAST_STRIDE + 1) > 1e-2


def test_first_logits_state_the_prior():
    def bias(model):
        init = jax.jit(lambda key: model.init(key, *inputs(40, 64))["params"]["class_head"]["output"]["bias"])
        return init(jax.random.key(0))

    model = SMALL.clone(classes=2)
    np.testing.assert_allclose(jax.nn.sigmoid(bias(model)), [0.01, 0.01], rtol=1e-4)
    np.testing.assert_allclose(bias(model.clone(empty_classes=(1,))), [-4.59512, -13.8155], rtol=1e-5)


def test_residuals_are_dropped_in_training_only():
    one, other = (apply(variables(), *inputs(40, 64), train=True, seed=seed) for seed in (0, 1))
    same = apply(variables(), *inputs(40, 64), train=True)
    assert not np.allclose(one.logits[0], other.logits[0])
    np.testing.assert_array_equal(one.logits[0], same.logits[0])
    quiet = apply(variables(), *inputs(40, 64)), apply(variables(), *inputs(40, 64), seed=1)
    np.testing.assert_array_equal(quiet[0].logits[0], quiet[1].logits[0])


def test_half_precision_computes_and_float64_stays():
    half, single = (apply(variables(), *inputs(40, 64), dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert half.logits[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(half.logits[0].astype(jnp.float32), single.logits[0], atol=0.5)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables())
        levels = jax.eval_shape(SMALL.apply, wide, *(jnp.asarray(x) for x in inputs(40, 64)))
        assert levels.logits[0].dtype == jnp.float64

"""Update rules worked by hand, and groups of parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.config import base_config
from vlm_jax.train.optimizer import clip_by_norm, make_optimizer

PARAMS = {"body": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}, "head": {"kernel": jnp.array([3.0])}}
GRADS = {"body": {"kernel": jnp.array([0.1, 0.2]), "bias": jnp.array([-0.3])}, "head": {"kernel": jnp.array([0.4])}}


def updates(steps=1, **options):
    config = base_config().optimizer
    config.update(options)
    optimizer = make_optimizer(config, lambda step: 0.1, PARAMS)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        change, state = optimizer.update(GRADS, state, params)
        params = jax.tree.map(jnp.add, params, change)
    return params


def test_sgd_with_momentum_and_decay_in_the_gradient():
    # v1 = g + d w; w1 = w - r v1; v2 = m v1 + g + d w1; w2 = w1 - r v2
    w, g, d, m, r = 3.0, 0.4, 0.01, 0.9, 0.1
    v = g + d * w
    w1 = w - r * v
    w2 = w1 - r * (m * v + g + d * w1)
    ours = updates(2, name="sgd", momentum=m, weight_decay=d)
    np.testing.assert_allclose(ours["head"]["kernel"], [w2], rtol=1e-6)


def test_nesterov():
    w, g, m, r = 3.0, 0.4, 0.9, 0.1
    ours = updates(1, name="sgd", momentum=m, nesterov=True)
    np.testing.assert_allclose(ours["head"]["kernel"], [w - r * (g + m * g)], rtol=1e-6)


def test_adam_adds_decay_to_the_gradient_and_adamw_to_the_weight():
    # The first Adam update is r * g / (|g| + eps), whatever g is.
    adam = updates(1, name="adam", weight_decay=0.01)
    np.testing.assert_allclose(adam["head"]["kernel"], [3.0 - 0.1], rtol=1e-5)
    adamw = updates(1, name="adamw", weight_decay=0.01)
    np.testing.assert_allclose(adamw["head"]["kernel"], [3.0 - 0.1 - 0.1 * 0.01 * 3.0], rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_epsilon_before_or_after_the_corrections(steps):
    # All gradients alike: m = (1 - b1^t) g and v = (1 - b2^t) g^2, so only epsilon tells the two forms apart.
    g, epsilon, rate = 0.4, 0.5, 0.1
    corrected = [math.sqrt(1 - 0.999**t) for t in range(1, steps + 1)]
    before = 3.0 - sum(rate * g / (g + epsilon / root) for root in corrected)
    after = 3.0 - steps * rate * g / (g + epsilon)
    for flag, expected in ((True, before), (False, after)):
        ours = updates(steps, name="adam", epsilon=epsilon, epsilon_before_correction=flag)
        np.testing.assert_allclose(ours["head"]["kernel"], [expected], rtol=1e-6)
    assert before - after > 0.04


def test_groups_first_match_wins():
    groups = (("bias$", 1.0, 0.0), ("^head/", 2.0, 0.5), ("kernel", 0.1, 0.0))
    ours = updates(1, name="sgd", momentum=0.0, weight_decay=9.0, groups=groups)
    np.testing.assert_allclose(ours["body"]["bias"], [0.5 + 0.1 * 0.3], rtol=1e-6)
    np.testing.assert_allclose(ours["head"]["kernel"], [3.0 - 0.1 * 2 * (0.4 + 0.5 * 3.0)], rtol=1e-6)
    np.testing.assert_allclose(ours["body"]["kernel"], np.array([1.0, -2.0]) - 0.01 * np.array([0.1, 0.2]), rtol=1e-6)


@pytest.mark.parametrize("limit", [0.1, 10.0])
def test_clipping_as_torch_does_it(limit):
    norm = np.sqrt(0.1**2 + 0.2**2 + 0.3**2 + 0.4**2)
    clipped, measured = clip_by_norm(GRADS, limit)
    np.testing.assert_allclose(measured, norm, rtol=1e-6)
    np.testing.assert_allclose(clipped["head"]["kernel"], [0.4 * min(1, limit / (norm + 1e-6))], rtol=1e-6)

"""Rates worked by hand, in the forms that the five systems' recipes need."""

import math

import numpy as np
import pytest

from vlm_jax.config import base_config
from vlm_jax.train.schedule import make_schedule


def rates(steps, total=100, per_epoch=10, batch_size=None, **options):
    config = base_config().schedule
    config.learning_rate = 2.0
    config.update(options)
    schedule = make_schedule(config, total, per_epoch, batch_size)
    return [float(schedule(step)) for step in steps]


def test_constant():
    assert rates([0, 50, 99]) == [2.0, 2.0, 2.0]


def test_warmup_from_zero_then_cosine():
    ours = rates([0, 1, 10, 55, 100, 110], name="cosine", warmup_steps=10)
    expected = [0.0, 0.2, 2.0, 1.0, 0.0, 1 + math.cos(math.pi * 100 / 90)]
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_inclusive_warmup_reaches_the_full_rate_twice_and_the_floor_holds():
    ours = rates([0, 9, 19, 20, 100], name="cosine", warmup_epochs=2, warmup_inclusive=True, final_learning_rate=0.5)
    np.testing.assert_allclose(ours, [0.0, 2 * 9 / 19, 2.0, 2.0, 0.5], atol=1e-6)


def test_warmup_from_a_tenth_then_steps():
    options = {"name": "multistep", "warmup_epochs": 5, "warmup_start": 0.1, "warmup_inclusive": True}
    ours = rates([0, 7, 49, 50, 99, 100, 150], boundary_epochs=(10, 15), **options)
    expected = [0.2, 2 * (0.1 + 0.9 * 7 / 49), 2.0, 2.0, 2.0, 0.2, 0.02]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_warmup_by_epoch_is_a_staircase():
    options = {"warmup_epochs": 5, "warmup_start": 0.1, "warmup_inclusive": True, "warmup_by_epoch": True}
    ours = rates([0, 9, 10, 25, 39, 40], name="multistep", boundary_steps=(1000,), **options)
    np.testing.assert_allclose(ours, 2 * np.array([0.1, 0.1, 0.325, 0.55, 0.775, 1.0]), rtol=1e-5)


@pytest.mark.parametrize("step", [0, 500, 2000])
def test_warmup_factor_by_interpolation(step):
    factor = 0.1 * (1 - step / 2000) + step / 2000
    ours = rates([step], name="multistep", warmup_steps=2000, warmup_start=0.1, boundary_steps=(5000,))
    np.testing.assert_allclose(ours, [2 * factor], rtol=1e-5)


def test_warmup_of_mmaction2_before_version_1_reaches_the_full_rate_one_update_later():
    ours = rates([0, 7, 49, 50], name="multistep", warmup_epochs=5, warmup_start=0.1)
    np.testing.assert_allclose(ours, 2 * (0.1 + 0.9 * np.array([0, 7, 49, 50]) / 50), rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "cosine", "multistep"])
def test_all_rates_are_scaled_with_the_batch(name):
    options = {"name": name, "warmup_steps": 10, "final_learning_rate": 0.5, "boundary_steps": (50,)}
    steps = [0, 3, 10, 40, 70, 100]
    plain = rates(steps, **options)
    for batch, factor in ((96, 1.0), (8, 1 / 12), (192, 2.0)):
        np.testing.assert_allclose(
            rates(steps, batch_size=batch, reference_batch_size=96, **options), factor * np.array(plain), rtol=1e-6
        )
    assert rates(steps, batch_size=8, **options) == plain, "off by default"

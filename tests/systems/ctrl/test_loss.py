"""CTRL's loss worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.systems.ctrl.loss import alignment_regression


def outputs(scores, offsets=0.0):
    scores = np.array(scores, np.float64)
    made = np.full((*scores.shape, 3), offsets, np.float64)
    made[..., 0] = scores
    return made


def test_two_pairs_by_hand():
    made = outputs([[1.0, 0.5], [-2.0, 3.0]])
    made[0, 0, 1:], made[1, 1, 1:] = (4.0, -2.0), (1.0, 1.0)
    made[0, 1, 1:] = 1e6  # offsets of wrong pairs count for nothing
    ours = alignment_regression(made, np.array([[1.0, 0.0], [1.0, 3.0]]))
    right = [math.log(1 + math.exp(-score)) for score in (1.0, 3.0)]
    wrong = [math.log(1 + math.exp(score)) for score in (0.5, -2.0)]
    alignment = (1.5 * sum(right) + 0.5 * sum(wrong)) / 4
    regression = (3 + 2 + 0 + 2) / 4
    np.testing.assert_allclose(ours.alignment, alignment, rtol=1e-6)
    np.testing.assert_allclose(ours.regression, regression, rtol=1e-6)
    np.testing.assert_allclose(ours.total, alignment + 0.01 * regression, rtol=1e-6)


def test_weights_are_options():
    made, offsets = outputs([[1.0, 0.5], [-2.0, 3.0]], 5.0), np.zeros((2, 2))
    right, wrong = (1 + math.exp(-1.0)) * (1 + math.exp(-3.0)), (1 + math.exp(0.5)) * (1 + math.exp(-2.0))
    ours = alignment_regression(made, offsets, positive_weight=3.0, alpha=0.2, regression_weight=0.5)
    alignment = (3.2 * math.log(right) + 0.2 * math.log(wrong)) / 4
    np.testing.assert_allclose(ours.total, alignment + 0.5 * 5.0, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 56])
def test_all_scores_zero(batch):
    loss = alignment_regression(outputs(np.zeros((batch, batch))), np.zeros((batch, 2)))
    np.testing.assert_allclose(loss.alignment, 2 * math.log(2) / batch, rtol=1e-5)


def test_gradients_reach_the_diagonal_of_the_offsets_and_all_scores_however_large():
    made = jnp.asarray(outputs([[-500.0, 500.0], [90.0, 0.0]], 3.0), jnp.float32)
    targets = np.array([[3.0, 0.0], [9.0, 3.0]], np.float32)
    value, gradient = jax.value_and_grad(lambda made: alignment_regression(made, targets).total)(made)
    assert np.isfinite(value)
    np.testing.assert_allclose(gradient[..., 0], np.array([[-1.5, 0.5], [0.5, -0.75]]) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient[..., 1], 0.01 / 4 * np.array([[0, 0], [0, -1]]), rtol=1e-6)
    np.testing.assert_allclose(gradient[..., 2], 0.01 / 4 * np.array([[1, 0], [0, 0]]), rtol=1e-6)

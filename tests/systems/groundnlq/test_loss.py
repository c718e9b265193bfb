"""Losses of dense moment prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.systems.groundnlq.loss import centre_iou, distance_iou, grounding_loss, sigmoid_focal, smooth_labels

LENGTHS = (8, 4)


def made(examples=4, classes=1, seed=0):
    """Heads' outputs over two levels, and targets with three positives an example."""
    rng = np.random.default_rng(seed)
    logits = [jnp.asarray(rng.normal(size=(examples, length, classes)), jnp.float32) for length in LENGTHS]
    offsets = [jnp.asarray(rng.uniform(size=(examples, length, 2)), jnp.float32) for length in LENGTHS]
    masks = [jnp.asarray(rng.uniform(size=(examples, length)) < 0.7).at[:, 0].set(True) for length in LENGTHS]
    targets = np.zeros((examples, sum(LENGTHS), classes), np.float32)
    targets[:, [0, 3, 8]] = 1
    distances = rng.uniform(0.1, 2, (examples, sum(LENGTHS), 2))
    return logits, offsets, masks, jnp.asarray(targets), jnp.asarray(distances, jnp.float32)


def test_focal_loss_by_hand():
    # p = 0.8, y = 1: 0.25 * -log 0.8 * 0.2^2; y = 0: 0.75 * -log 0.2 * 0.8^2.
    logits = jnp.log(jnp.array([4.0, 4.0]))
    expected = [0.25 * -np.log(0.8) * 0.04, 0.75 * -np.log(0.2) * 0.64]
    np.testing.assert_allclose(sigmoid_focal(logits, jnp.array([1.0, 0.0])), expected, rtol=1e-5)
    unweighted = sigmoid_focal(logits, jnp.array([1.0, 0.0]), alpha=-1)
    np.testing.assert_allclose(unweighted, np.array(expected) / [0.25, 0.75], rtol=1e-5)


def test_focal_loss_is_finite_far_out():
    value, gradient = jax.value_and_grad(lambda x: sigmoid_focal(x, jnp.array([1.0, 0.0, 0.95, 0.05])).sum())(
        jnp.array([-90.0, 90.0, 90.0, -90.0])
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_smoothing_counts_nothing_as_a_class():
    np.testing.assert_allclose(smooth_labels(jnp.array([[1.0], [0.0]]), 0.1), [[0.95], [0.05]])
    np.testing.assert_allclose(smooth_labels(jnp.array([[1.0, 0.0, 0.0]]), 0.1), [[0.925, 0.025, 0.025]])


def test_overlap_losses_by_hand():
    # [-1, 3] against [-2, 1]: 2 of 5 shared; middles 1 and -0.5 over a hull of 5.
    offsets, targets = jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0])
    np.testing.assert_allclose(centre_iou(offsets, targets), 1 - 2 / 5)
    np.testing.assert_allclose(distance_iou(offsets, targets), 1 - 2 / 5 + (1.5 / 5) ** 2)


def test_segments_of_no_length_have_finite_gradients():
    gradient = jax.grad(lambda x: distance_iou(x, jnp.zeros((1, 2))).sum())(jnp.zeros((1, 2)))
    assert np.isfinite(gradient).all()


def test_the_normaliser_is_updated_before_it_divides():
    inputs = made()
    loss, metrics, after = grounding_loss(*inputs, jnp.array([200.0]))
    masks, targets = np.concatenate(inputs[2], 1), np.asarray(inputs[3])
    positives = (masks & (targets[..., 0] > 0)).sum()
    np.testing.assert_allclose(after, [0.9 * 200 + 0.1 * positives], rtol=1e-6)
    focal = sigmoid_focal(jnp.concatenate(inputs[0], 1), smooth_labels(inputs[3], 0.1))[..., 0]
    np.testing.assert_allclose(metrics["class_loss"], focal[masks].sum() / after[0], rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["class_loss"] + metrics["offset_loss"], rtol=1e-6)


def test_groups_are_processes_whose_losses_are_averaged():
    inputs = made()
    before = jnp.array([200.0, 50.0])
    together = grounding_loss(*inputs, before)
    halves = [jax.tree.map(lambda x, part=part: x[part], inputs) for part in (slice(0, 2), slice(2, 4))]
    alone = [grounding_loss(*half, before[n : n + 1]) for n, half in enumerate(halves)]
    np.testing.assert_allclose(together[0], (alone[0][0] + alone[1][0]) / 2, rtol=1e-6)
    np.testing.assert_allclose(together[2], jnp.concatenate([alone[0][2], alone[1][2]]), rtol=1e-6)


def test_without_positives_only_classes_count():
    logits, offsets, masks, targets, distances = made()
    loss, metrics, after = grounding_loss(logits, offsets, masks, targets * 0, distances, jnp.array([200.0]))
    assert metrics["offset_loss"] == 0
    assert loss == metrics["class_loss"]
    np.testing.assert_allclose(after, [180.1], rtol=1e-6)


def test_a_weight_of_zero_balances_the_parts():
    inputs = made()
    loss, metrics, _ = grounding_loss(*inputs, jnp.array([200.0]), loss_weight=0)
    expected = metrics["class_loss"] * (1 + min(1, metrics["offset_loss"] / 0.01))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_what_is_masked_does_not_matter():
    logits, offsets, masks, targets, distances = made()
    loud = [jnp.where(mask[..., None], logit, 1e4) for logit, mask in zip(logits, masks, strict=True)]
    before = jnp.array([200.0])

    def loss(logits):
        return grounding_loss(logits, offsets, masks, targets, distances, before)[0]

    np.testing.assert_allclose(loss(loud), loss(logits), rtol=1e-6)
    for gradient, mask in zip(jax.grad(loss)(loud), masks, strict=True):
        assert not np.asarray(gradient)[~np.asarray(mask)].any()


def test_float64_stays():
    with jax.enable_x64(True):
        inputs = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype != bool else x, made())
        loss, _, after = grounding_loss(*inputs, jnp.array([200.0], jnp.float64))
        assert (loss.dtype, after.dtype) == (jnp.float64, jnp.float64)


def test_half_precision_is_widened():
    logits, offsets, *rest = made()
    halves = [[x.astype(jnp.bfloat16) for x in part] for part in (logits, offsets)]
    assert grounding_loss(*halves, *rest, jnp.array([200.0]))[0].dtype == jnp.float32


def test_errors_name_what_does_not_fit():
    inputs = made()
    with pytest.raises(ValueError, match="3 groups do not divide 4 examples"):
        grounding_loss(*inputs, jnp.ones(3))
    with pytest.raises(ValueError, match=r"class targets are \(4, 11, 1\), expected \(4, 12, 1\)"):
        grounding_loss(*inputs[:3], inputs[3][:, 1:], inputs[4], jnp.ones(1))

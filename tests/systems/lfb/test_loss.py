"""Loss of lfb: rows that count, groups, reports by hand."""

import jax
import numpy as np
import pytest

from vlm_jax.systems.lfb.loss import action_loss

LOGITS = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)
LABELS = np.zeros((4, 3, 6), bool)
LABELS[0, 0, [1, 3]] = LABELS[0, 1, 2] = LABELS[1, 0, 5] = LABELS[3, 2, 4] = True
LABELS[2, 0, 0] = True  # column 0 alone: the row does not count


def cross_entropy(logits, labels):
    return np.log1p(np.exp(logits)) - labels * logits


def test_mean_over_rows_of_a_group_then_over_groups():
    found, _ = action_loss(LOGITS, LABELS, groups=2)
    rows = cross_entropy(LOGITS, LABELS)[..., 1:].mean(-1)
    first = (rows[0, 0] + rows[0, 1] + rows[1, 0]) / 3
    assert found == pytest.approx((first + rows[3, 2]) / 2, rel=1e-6)
    whole, _ = action_loss(LOGITS, LABELS)
    assert whole == pytest.approx((3 * first + rows[3, 2]) / 4, rel=1e-6)


def test_padding_changes_nothing():
    logits, labels = (np.pad(x, ((0, 0), (0, 5), (0, 0)), constant_values=x.dtype.type(1)) for x in (LOGITS, LABELS))
    labels[:, 3:] = False
    for ours, padded in zip(action_loss(LOGITS, LABELS, groups=2), action_loss(logits, labels, groups=2), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, padded)
    gradient = jax.grad(lambda x: action_loss(x, labels, groups=2)[0])(logits)
    assert not np.asarray(gradient)[:, 3:].any()


def test_a_batch_without_labels_has_no_loss():
    loss, reports = action_loss(LOGITS, np.zeros_like(LABELS))
    assert loss == 0
    assert all(np.isfinite(value) for value in reports.values())


def test_reports_by_hand():
    logits = np.array([[[9.0, 2.0, -1.0, 3.0, 0.5], [9.0, -2.0, -1.0, -3.0, -0.5]]], np.float32)
    labels = np.array([[[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]], bool)
    _, reports = action_loss(logits, labels, top_k=(1, 2))
    assert reports["recall@thr=0.5"] == pytest.approx((1 / 2 + 0) / 2)
    assert reports["prec@thr=0.5"] == pytest.approx((1 / 3 + 0) / 2, abs=1e-5)
    assert reports["recall@top1"] == pytest.approx((0 + 1) / 2)
    assert reports["recall@top2"] == pytest.approx((1 / 2 + 1) / 2)
    assert reports["prec@top2"] == pytest.approx((1 / 2 + 1 / 2) / 2, abs=1e-5)

"""From heads to moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.systems.groundnlq.decoding import Decoding, Moments, decode, suppress

PLAIN = Decoding(feature_stride=30.0, shift=0.0, fps=30.0)


def made(classes=1):
    """Two levels of 8 and 4 positions; one loud point on each."""
    logits = [np.full((1, length, classes), -9.0, np.float32) for length in (8, 4)]
    offsets = [np.ones((1, length, 2), np.float32) for length in (8, 4)]
    masks = [np.ones((1, length), bool) for length in (8, 4)]
    logits[0][0, 5, 0], offsets[0][0, 5] = 2, (0.5, 1.5)
    logits[1][0, 1, classes - 1], offsets[1][0, 1] = 1, (0.5, 0.25)
    return logits, offsets, masks


def found(moments, row=0):
    """What there is, as lists."""
    mask = np.asarray(moments.mask[row])
    return np.asarray(moments.segments[row])[mask].round(5).tolist(), np.asarray(moments.scores[row])[mask].tolist()


def test_points_reach_left_and_right_in_strides():
    segments, scores = found(decode(*made(), jnp.array([100.0]), PLAIN))
    assert segments == [[4.5, 6.5], [1.0, 2.5]]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-2.0, -1.0])), rtol=1e-6)


def test_times_are_shifted_scaled_and_held_within_the_video():
    options = dataclasses.replace(PLAIN, feature_stride=60.0, shift=15.0)
    segments, _ = found(decode(*made(), jnp.array([12.0]), options))
    assert segments == [[9.5, 12.0], [2.5, 5.5]]


def test_masked_points_and_short_segments_are_left_out():
    logits, offsets, masks = made()
    masks[0][0, 5] = False
    assert found(decode(logits, offsets, masks, jnp.array([100.0]), PLAIN))[0] == [[1.0, 2.5]]
    longer = dataclasses.replace(PLAIN, duration_threshold=1.5)
    assert found(decode(*made(), jnp.array([100.0]), longer))[0] == [[4.5, 6.5]]


def test_nothing_is_made_up():
    logits, offsets, masks = made()
    quiet = [logit * 0 - 9 for logit in logits]
    for suppression in ("soft", "hard"):
        options = dataclasses.replace(PLAIN, suppression=suppression)
        moments = decode(quiet, offsets, masks, jnp.array([100.0]), options)
        assert not moments.mask.any()
        assert not moments.scores.any()
        assert np.isfinite(moments.segments).all()


def test_classes_suppress_themselves_only():
    segments = jnp.array([[0.0, 4.0], [0.0, 4.0], [0.0, 4.1]])
    inputs = Moments(segments, jnp.array([0.9, 0.8, 0.7]), jnp.array([0, 1, 0]), jnp.ones(3, bool))
    options = dataclasses.replace(PLAIN, suppression="hard")
    apart = suppress(inputs, 2, options)
    assert apart.labels[apart.mask].tolist() == [0, 1]
    together = suppress(inputs, 2, dataclasses.replace(options, per_class=False))
    assert together.labels[together.mask].tolist() == [0]


def test_one_compilation_serves_a_batch():
    inputs = jax.tree.map(lambda x: np.concatenate([x, x * (0 if x.dtype == bool else 1)]), made(2))
    moments = jax.jit(decode, static_argnums=4)(*inputs, jnp.array([100.0, 5.0]), PLAIN)
    assert moments.segments.shape == (2, 5, 2)
    assert found(moments, 0)[0] == [[4.5, 6.5], [1.0, 2.5]]
    assert found(moments, 1)[0] == []
    assert moments.labels[0, :2].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("decay", "score"), [("gaussian", 0.8 * np.exp(-(0.5**2) / 0.75)), ("linear", 0.4), ("hard", 0)]
)
def test_soft_suppression_fades_scores_as_its_decay_says(decay, score):
    segments = jnp.array([[0.0, 4.0], [0.0, 8.0]])
    inputs = Moments(segments, jnp.array([0.9, 0.8]), jnp.array([0, 0]), jnp.ones(2, bool))
    kept = suppress(inputs, 1, dataclasses.replace(PLAIN, decay=decay))
    np.testing.assert_allclose(kept.scores[:2], [0.9, score], rtol=1e-5)

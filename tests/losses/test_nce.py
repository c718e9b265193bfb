"""MIL-NCE worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.losses.nce import grouped_mil_nce, mil_nce


def test_two_videos_two_candidates_by_hand():
    video = np.array([[1.0, 0.0], [0.0, 2.0]])
    text = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 1.0]])
    # Scores of video 0: 1 0 | .5 1; of video 1: 0 2 | 1 2.
    scores = {(0, 0): [1, 0], (0, 1): [0.5, 1], (1, 0): [0, 2], (1, 1): [1, 2]}
    expected = 0.0
    for i, j in ((0, 1), (1, 0)):
        positives = sum(map(math.exp, scores[i, i]))
        everything = 2 * positives + sum(map(math.exp, scores[i, j])) + sum(map(math.exp, scores[j, i]))
        expected += math.log(everything / positives) / 2
    np.testing.assert_allclose(mil_nce(jnp.asarray(video), jnp.asarray(text)), expected, rtol=1e-6)


def test_one_video_gives_log_two_and_no_gradient():
    video, text = jnp.array([[0.3, -2.0]]), jnp.array([[1.0, 2.0], [0.1, 5.0]])
    loss, gradients = jax.value_and_grad(mil_nce, (0, 1))(video, text)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    assert max(float(jnp.abs(gradient).max()) for gradient in gradients) < 1e-6


def test_large_scores_stay_finite():
    video, text = jnp.eye(3) * 30, jnp.eye(3) * 30
    assert math.isclose(mil_nce(video, text), math.log(2), rel_tol=1e-3)
    assert np.isfinite(jax.grad(mil_nce)(video, text[::-1])).all()


def test_half_precision_embeddings_give_a_float32_loss():
    assert mil_nce(jnp.ones((2, 4), jnp.bfloat16), jnp.ones((4, 4), jnp.bfloat16)).dtype == jnp.float32


def test_groups_of_two_by_hand():
    scores = np.arange(16, dtype=np.float32).reshape(4, 4) / 4
    expected = 0.0
    for own, middle in ((slice(0, 2), 1), (slice(2, 4), 3)):
        positives = np.exp(scores[own, middle]).sum()
        others = np.delete(np.exp(scores[middle]), np.arange(4)[own]).sum()
        expected += math.log((np.exp(scores[:, middle]).sum() + others) / positives) / 2
    np.testing.assert_allclose(grouped_mil_nce(jnp.asarray(scores), 2), expected, rtol=1e-6)


def test_a_weight_of_zero_leaves_a_group_out():
    scores = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    first, second = (grouped_mil_nce(scores, 1, jnp.array(weights)) for weights in ([1.0, 0.0], [0.0, 1.0]))
    np.testing.assert_allclose(first + second, grouped_mil_nce(scores), rtol=1e-6)
    np.testing.assert_allclose(first, math.log(1 + math.exp(-0.5) + math.exp(-1)) / 2, rtol=1e-6)


def test_a_group_alone_has_no_loss_and_no_gradient():
    found, gradient = jax.value_and_grad(grouped_mil_nce)(jnp.array([[3.0]]))
    assert (float(found), float(gradient[0, 0])) == (0, 0)


def test_large_scores_of_groups_stay_finite():
    scores = jnp.full((4, 4), -500.0).at[0, 3].set(700.0)
    found, gradient = jax.value_and_grad(grouped_mil_nce)(scores, 2)
    assert np.isfinite(found)
    assert np.isfinite(gradient).all()

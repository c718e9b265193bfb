"""Losses and batch metrics of SNP-S3, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.systems.snps3 import heads, loss, metrics

SCORES = jnp.array([[5.0, 1, 4, 3], [2, 6, 7, 5], [9, 1, 3, 4], [1, 2, 3, 8]])


def test_one_clip_makes_the_loss_symmetric():
    texts, clips = jnp.eye(3), 2 * jnp.eye(3)[:, None]
    found = loss.in_batch(loss.clip_scores(texts, clips))
    np.testing.assert_allclose(found, np.log(1 + 4 * np.exp(-2)), rtol=1e-6)


def test_scores_of_words_are_those_of_their_sum():
    words, clips = jnp.zeros((2, 3, 4)), jnp.ones((2, 5, 4))
    scores = loss.word_scores(words, clips)
    assert scores.shape == (2, 2, 5)
    np.testing.assert_allclose(scores, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(loss.over_clips(scores), np.log(15), rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # Text 0 has the negatives 3 (9) and 1 (4), and entry 0 is its own; text 1 has 2 (7), and entry 1 is its own.
        ("top_k", [[0, 1], [2, 1]]),
        # Nearest to text 0's own 3 are 2 (2.5) and 1 (4); to text 1's own 6 are 0 (5.5) and 2 (7).
        ("nearliest", [[0, 1], [0, 1]]),
    ],
)
def test_hard_videos(method, expected):
    scores = jnp.array([[3.0, 4, 2.5, 9], [5.5, 6, 7, 1]])
    assert loss.hard_videos(scores, jnp.array([0, 1]), method).tolist() == expected
    # The group's own videos can stand anywhere among all videos.
    moved = loss.hard_videos(jnp.roll(scores, 2, 1), jnp.array([2, 3]), method)
    assert moved.tolist() == ((jnp.array(expected) + 2) % 4).tolist()


def test_weights_of_hard_texts():
    weights = loss.hard_weights(jnp.array([0.0, 1, 1, 18]))  # mean 5
    np.testing.assert_allclose(weights, [1, 1, 1, 5 / 18], rtol=1e-6)
    np.testing.assert_allclose(loss.hard_weights(jnp.array([0.0] * 9 + [1])), [1] * 9 + [0.2])
    np.testing.assert_allclose(loss.hard_weights(jnp.ones(3)), 1)
    assert not jax.grad(lambda scores: loss.hard_weights(scores).sum())(jnp.arange(4.0)).any()


def test_unlabelled_tokens_do_not_count():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]))
    labels = jnp.array([[0, -1, 1]])
    np.testing.assert_allclose(loss.cross_entropy(logits, labels), np.log([2, 5]).mean(), rtol=1e-6)
    np.testing.assert_allclose(loss.hit_rate(logits, labels), 0.5, rtol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    labels = jnp.full((1, 2), -1)
    found, gradient = jax.value_and_grad(loss.cross_entropy)(jnp.ones((1, 2, 3)), labels)
    assert float(found) == 0
    assert not gradient.any()
    assert float(loss.hit_rate(jnp.ones((1, 2, 3)), labels)) == 0


def test_batch_metrics_by_hand():
    # Ranks of the diagonal from 0: 0, 1, 2, 0; of the sorted ranks 0 0 1 2 the lower median is 0.
    assert {name: float(value) for name, value in metrics.batch_metrics(SCORES).items()} == {
        "r_1": 0.5,
        "r_5": 1,
        "r_10": 1,
        "mr": 1,
    }
    assert float(metrics.batch_metrics(SCORES[:3, :3])["mr"]) == 2


def test_every_tied_position_is_an_entry():
    tied = jnp.ones((12, 12))  # entries of every rank, 12 times
    found = jax.jit(metrics.batch_metrics)(tied)
    np.testing.assert_allclose([found[name] for name in ("r_1", "r_5", "r_10")], [1 / 12, 5 / 12, 10 / 12], rtol=1e-6)
    assert float(found["mr"]) == 6


def test_answers_outside_of_the_vocabulary_are_wrong():
    assert metrics.accuracy(np.array([2, 0, 1]), [[2], [1, 0], [-1]]) == 0.6667


def test_heads_keep_the_compute_type_and_the_table_s_gradient():
    table, hidden = jnp.ones((7, 4)), jnp.arange(24.0).reshape(2, 3, 4)
    head = heads.MaskedWordHead(dtype=jnp.bfloat16)
    variables = head.init(jax.random.key(0), hidden, table)
    assert head.apply(variables, hidden, table).dtype == jnp.bfloat16
    assert jax.grad(lambda table: head.apply(variables, hidden, table).sum().astype(float))(table).any()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_the_matching_head_drops_only_in_training():
    head, pooled = heads.MatchingHead(dropout=0.9), jnp.ones((2, 4))
    variables = head.init(jax.random.key(0), pooled)
    assert variables["params"]["hidden"]["kernel"].shape == (4, 8)
    still = head.apply(variables, pooled)
    assert still.shape == (2,)
    np.testing.assert_array_equal(still[0], still[1])
    trained = head.apply(variables, pooled, train=True, rngs={"dropout": jax.random.key(1)})
    assert (trained != still).any()


def test_groups_are_averaged_by_themselves():
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.2, 0.8]]))
    labels = jnp.array([0, 1, 0, -1])  # log 2, and log 5 of one label
    found = loss.mean_over_groups(loss.cross_entropy, 2, logits, labels)
    np.testing.assert_allclose(found, np.log(10) / 2, rtol=1e-6)


def test_a_caption_of_two_videos_matches_both():
    assert metrics.matches([0, 1, 0, 1], [0, 1, 2, 1]) == ([[0, 2], [1]], [[0], [1], [0]])
    scores = np.array([[1.0, 2, 3], [3, 2, 1]])
    found = metrics.retrieval_metrics(scores, [0, 1, 0], [0, 1, 2])
    assert (found["t2v-r@1"], found["t2v-mr"], found["v2t-r@1"], found["v2t-mr"]) == (0.5, 1.5, 1 / 3, 2)

"""Suppression against loops over lists."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops import nms
from vlm_jax.ops import segments as segments_ops

COUNT = 30


def iou(a, b, epsilon=0.0):
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0] + epsilon) + (b[1] - b[0] + epsilon) - shared)


def greedy_loop(segments, scores, mask, threshold, last=False):
    places = [place for place in range(len(scores)) if mask[place]]
    kept = []
    while places:
        best = max(places, key=lambda place: (scores[place], place if last else -place))
        kept.append(best)
        places = [place for place in places if place != best and iou(segments[place], segments[best]) <= threshold]
    return kept


def soft_loop(segments, scores, mask, decay, sigma, threshold, min_score):
    left = {place: float(scores[place]) for place in range(len(scores)) if mask[place]}
    index, after = [], []
    while left:
        best = max(left, key=lambda place: (left[place], -place))
        index.append(best)
        after.append(left.pop(best))
        for place in list(left):
            shared = iou(segments[place], segments[best], 1e-6)
            factor = np.exp(-(shared**2) / sigma) if decay == "gaussian" else 1.0
            if decay != "gaussian" and shared >= threshold:
                factor = 1 - shared if decay == "linear" else 0.0
            left[place] *= factor
            if left[place] < min_score:
                del left[place]
    return index, after


def made(seed, ties=False):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 60, COUNT)
    segments = np.stack([start, start + rng.uniform(1, 30, COUNT)], 1).astype(np.float32)
    scores = rng.uniform(0.01, 1, COUNT).astype(np.float32)
    if ties:
        scores = np.round(scores, 1)
    return segments, scores, rng.uniform(size=COUNT) < 0.8


@functools.partial(jax.jit, static_argnames=("picks", "last"))
def suppress(segments, scores, mask, threshold, picks=COUNT, last=False):
    return nms.greedy(segments, scores, mask, lambda shared: shared <= threshold, picks, last_of_equals=last)


soft = jax.jit(nms.soft, static_argnames=("max_picks", "decay"))


@pytest.mark.parametrize("last", [False, True])
def test_greedy_with_ties(last):
    for seed in range(10):
        inputs = made(seed, ties=True)
        picks = suppress(*inputs, 0.4, last=last)
        expected = greedy_loop(*inputs, 0.4, last)
        assert picks.index.tolist() == expected + [-1] * (COUNT - len(expected))
        np.testing.assert_array_equal(picks.score[: len(expected)], inputs[1][expected])
        assert not np.asarray(picks.score)[len(expected) :].any()


@pytest.mark.parametrize("decay", nms.DECAYS)
def test_soft(decay):
    options = {"sigma": 0.5, "threshold": 0.3, "min_score": 0.1}
    for seed in range(10):
        inputs = made(seed)
        picks = soft(*inputs, max_picks=COUNT, decay=decay, **options)
        index, after = soft_loop(*inputs, decay, **options)
        assert picks.index.tolist() == index + [-1] * (COUNT - len(index))
        np.testing.assert_allclose(picks.score[: len(after)], after, rtol=1e-5)


def test_soft_takes_the_first_of_equals_and_spares_the_first_pick():
    segments, mask = jnp.array([[0.0, 1.0], [5.0, 6.0], [9.0, 10.0]]), jnp.ones(3, bool)
    picks = nms.soft(segments, jnp.array([0.2, 0.5, 0.5]), mask, 3, min_score=0.3)
    assert picks.index.tolist() == [1, 2, -1]
    assert nms.soft(segments, jnp.array([0.2, 0.1, 0.1]), mask, 3, min_score=0.3).index.tolist() == [0, -1, -1]


def test_stopping_early_is_exact():
    inputs = made(3)
    every = suppress(*inputs, 0.4)
    assert suppress(*inputs, 0.4, picks=4).index.tolist() == every.index[:4].tolist()
    more = suppress(*inputs, 0.4, picks=COUNT + 5).index.tolist()
    assert more == every.index.tolist() + [-1] * 5
    five = soft(*inputs, max_picks=5)
    np.testing.assert_array_equal(five.index, soft(*inputs, max_picks=COUNT).index[:5])


def test_padding_changes_nothing_and_batches_are_vmapped():
    segments, scores, mask = (np.stack(parts) for parts in zip(*(made(seed) for seed in range(3)), strict=True))
    padded = [np.pad(part, [(0, 0), (0, 7), *([(0, 0)] * (part.ndim - 2))]) for part in (segments, scores, mask)]
    padded[1][:, COUNT:] = 9.0
    for one in (
        functools.partial(nms.soft, max_picks=6),
        lambda *inputs: nms.greedy(*inputs, lambda shared: shared < 0.3, 6),
    ):
        batched = jax.jit(jax.vmap(one))(*padded)
        for row in range(3):
            alone = one(*(jnp.asarray(part[row]) for part in (segments, scores, mask)))
            np.testing.assert_array_equal(batched.index[row], alone.index)
            np.testing.assert_allclose(batched.score[row], alone.score, rtol=1e-6)


def test_nothing_there_gives_nothing():
    segments, scores, mask = made(0)
    for picks in (
        soft(segments, scores, mask & False, max_picks=3),
        suppress(segments, scores, mask & False, 0.4, picks=3),
    ):
        assert picks.index.tolist() == [-1, -1, -1]
        assert picks.score.tolist() == [0, 0, 0]


def test_votes_are_means_weighed_by_score_and_overlap():
    segments = jnp.array([[0.0, 4.0], [0.0, 8.0], [20.0, 30.0]])
    moved = nms.vote(segments[:1], segments, jnp.array([0.5, 0.4, 0.9]), jnp.ones(3, bool), 0.4)
    weights = np.array([0.5 * 1, 0.4 * 0.5])
    np.testing.assert_allclose(moved, [[0, (weights * [4, 8]).sum() / weights.sum()]], rtol=1e-6)


def test_epsilon_is_rounded_into_each_length_first():
    """As `nms_1d_cpu.cpp` has it, in float32: the order of the sum decides whether a near-duplicate reaches 1."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 500, 20000).astype(np.float32)
    first = np.stack([start, start + rng.uniform(0.5, 200, len(start)).astype(np.float32)], 1)
    second = first.copy()
    second[:, 1] = np.nextafter(first[:, 1], np.float32(np.inf), dtype=np.float32)
    epsilon = np.float32(1e-6)
    lengths = [(segments[:, 1] - segments[:, 0]) + epsilon for segments in (first, second)]
    shared = np.minimum(first[:, 1], second[:, 1]) - np.maximum(first[:, 0], second[:, 0])
    expected = shared / (lengths[0] + lengths[1] - shared)
    assert expected.dtype == np.float32
    found = jax.jit(functools.partial(segments_ops.overlap, epsilon=1e-6))(first, second)
    np.testing.assert_array_equal(np.asarray(found) >= 1, expected >= 1)
    np.testing.assert_array_equal(found, expected)
    other = shared / ((first[:, 1] - first[:, 0]) + epsilon + (second[:, 1] - second[:, 0]) + epsilon - shared)
    assert ((other >= 1) != (expected >= 1)).any()  # the pairs tell the two orders apart

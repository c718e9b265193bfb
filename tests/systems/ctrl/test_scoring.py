"""Matrices of scores in tiles, and the segments that suppression leaves."""

import jax
import numpy as np
import pytest

from vlm_jax.systems.ctrl.model import Ctrl
from vlm_jax.systems.ctrl.scoring import answer, make_comparison, pick

MODEL = Ctrl(dim=8, hidden_dim=6)
SIZES = ((8, 4), (1, 1), (21, 13), (0, 3), (5, 0))


def embeddings(rng, count):
    made = rng.normal(size=(count, 8)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_tiles_give_what_the_whole_matrix_gives_and_compile_once(caplog):
    rng = np.random.default_rng(0)
    variables = MODEL.init(jax.random.key(0), np.zeros((1, 9), np.float32), np.zeros((1, 5), np.float32))
    run = make_comparison(MODEL, variables, sentences=4, windows=8)
    cases = [(embeddings(rng, clips), embeddings(rng, texts)) for clips, texts in SIZES]
    with jax.log_compiles(), caplog.at_level("WARNING"):
        found = [run(*case) for case in cases]
    assert sum(message.startswith("Compiling") and "lambda" in message for message in caplog.messages) == 1
    for (clips, texts), scores in zip(cases, found, strict=True):
        assert scores.shape == (len(texts), len(clips), 3)
        expected = MODEL.apply(variables, clips, texts, method="compare")
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def reference(segments, scores, limit):
    """The rule, one segment after the other."""
    order, kept = list(np.argsort(scores, kind="stable")), []
    lengths = segments[:, 1] - segments[:, 0]
    while order:
        best = order.pop()
        kept.append(best)
        stays = []
        for other in order:
            shared = max(0.0, min(segments[[best, other], 1]) - max(segments[[best, other], 0]))
            with np.errstate(invalid="ignore", divide="ignore"):
                if shared / np.float64(lengths[best] + lengths[other] - shared) <= limit:
                    stays.append(other)
        order = stays
    return kept


@pytest.mark.parametrize("count", [1, 7, 64, 65, 200])
def test_picks_are_those_of_the_rule(count):
    rng = np.random.default_rng(count)
    start = rng.integers(0, 300, (3, count)).astype(float)
    segments = np.stack([start, start + rng.integers(-5, 120, (3, count))], -1)
    scores = rng.integers(0, 5, (3, count)).astype(np.float32)  # with many ties
    for limit in (0.0, 0.05, 0.45, 1 / 3):
        picks = pick(segments, scores, limit, count + 1)
        for row in range(3):
            expected = reference(segments[row], scores[row], limit)
            assert picks[row].tolist() == expected + [-1] * (count + 1 - len(expected))
        np.testing.assert_array_equal(pick(segments, scores, limit, 2), picks[:, :2])


def test_equal_scores_the_later_one_first_and_exactly_the_limit_stays():
    segments = np.array([[[0, 100], [50, 150], [300, 400]]], float)
    assert pick(segments, np.ones((1, 3)), 0.45, 3).tolist() == [[2, 1, 0]]
    assert pick(segments, np.ones((1, 3)), 1 / 3, 3).tolist() == [[2, 1, 0]]
    assert pick(segments, np.ones((1, 3)), 0.33, 3).tolist() == [[2, 1, -1]]


def test_segments_of_no_length_and_backward_ones():
    segments = np.array([[[5, 5], [5, 5], [10, 0], [7, 7]]], float)
    assert pick(segments, np.arange(4.0)[None], 0.45, 4).tolist() == [[3, 2, -1, -1]]


def test_no_windows_and_no_sentences():
    assert pick(np.zeros((2, 0, 2)), np.zeros((2, 0)), 0.45, 3).tolist() == [[-1] * 3] * 2
    assert pick(np.zeros((0, 4, 2)), np.zeros((0, 4)), 0.45, 3).shape == (0, 3)
    found = answer("a", np.zeros((0, 2)), [[1, 9], [2, 9]], np.zeros((2, 0, 3), np.float32), (0.5,), 5)
    assert found.windows == 0
    assert found.best[0.5].shape == (2, 5, 3)
    assert np.isnan(found.best[0.5]).all()


def test_segments_are_windows_shifted_by_the_offsets_of_their_own_pair():
    outputs = np.array([[[1, -2, 3], [4, 5, 6]], [[9, 0, 0], [0, 1, 1]]], np.float32)
    found = answer("a", np.array([[100, 200], [1000, 1100]]), np.zeros((2, 2)), outputs, (0.5, 0.7), 3)
    for best in found.best.values():
        np.testing.assert_array_equal(best[0], [[1005, 1106, 4], [98, 203, 1], [np.nan] * 3])
        np.testing.assert_array_equal(best[1], [[100, 200, 9], [1001, 1101, 0], [np.nan] * 3])


@pytest.mark.parametrize("channel", range(3))
def test_a_score_that_is_no_number(channel):
    outputs = np.zeros((1, 2, 3), np.float32)
    outputs[0, 1, channel] = np.nan
    with pytest.raises(ValueError, match=r"^evaluation: s1\.avi: a score or an offset is not a finite number"):
        answer("s1.avi", np.zeros((2, 2)), [[0, 1]], outputs, (0.5,), 1)

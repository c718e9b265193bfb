"""Plain masking of tokens."""

import numpy as np

from vlm_jax.text.masking import IGNORED, mask_tokens
from vlm_jax.text.word_pieces import SPECIAL, WordPieces

TOKENS = WordPieces([*SPECIAL, *map(str, range(95))])


def test_shares_of_masked_replaced_and_kept_tokens():
    ids = np.tile(np.arange(5, 100), 400)
    masked, labels = mask_tokens(ids, np.random.default_rng(3), TOKENS)
    chosen = labels != IGNORED
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(masked[~chosen], ids[~chosen])
    assert abs(chosen.mean() - 0.15) < 0.01
    assert abs((masked[chosen] == TOKENS.mask_id).mean() - 0.8) < 0.02
    assert abs((masked[chosen] == ids[chosen]).mean() - 0.1) < 0.02


def test_the_generator_decides():
    ids = list(range(5, 100))
    first, again, other = (mask_tokens(ids, np.random.default_rng(seed), TOKENS)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_text_without_tokens_stays_empty():
    masked, labels = mask_tokens([], np.random.default_rng(0), TOKENS)
    assert masked.shape == labels.shape == (0,)

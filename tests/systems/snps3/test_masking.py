"""Masking of significant words, the choice of words, and attentive masking."""

import jax
import numpy as np
import pytest

from vlm_jax.systems.snps3.attentive import draw_attended, mask_drawn, sometimes_attended
from vlm_jax.systems.snps3.masking import SignificantWords, choose_words, mask_significant, number_to_mask, restore
from vlm_jax.text.masking import IGNORED
from vlm_jax.text.word_pieces import SPECIAL, WordPieces

TOKENS = WordPieces([*SPECIAL, "the", "of", "man", "men", "dog", "xylophone"])
THE, OF, MAN, MEN, DOG, XYLOPHONE = range(5, 11)
WORDS = SignificantWords.from_ranks(
    np.array([9] * 7 + [0, 1, 2, 3]), 3, {MAN: ["man", "men"], MEN: ["man", "men", "people"]}
)
KEPT_SPECIAL = (TOKENS.pad_id, TOKENS.cls_id, TOKENS.sep_id, TOKENS.mask_id)


@pytest.mark.parametrize(("length", "number"), [(0, 0), (1, 0), (2, 1), (7, 1), (8, 1), (9, 2), (20, 3), (22, 3)])
def test_the_number_of_masked_tokens(length, number):
    assert number_to_mask(length) == number


def test_significant_words_are_masked_first():
    ids = [THE, MAN, OF, DOG, THE, OF, THE, OF, THE, OF]
    for seed in range(30):
        masked, labels = mask_significant(ids, WORDS, np.random.default_rng(seed), TOKENS)
        assert np.flatnonzero(labels != IGNORED).tolist() == [1, 3]
        assert labels[[1, 3]].tolist() == [MAN, DOG]
        assert (masked[[0, 2, 4]] == [THE, OF, THE]).all()


def test_other_words_follow_with_their_own_labels():
    ids = [MAN, *[THE, OF] * 9, THE]  # 3 of 20 are masked
    for seed in range(30):
        masked, labels = mask_significant(ids, WORDS, np.random.default_rng(seed), TOKENS)
        chosen = np.flatnonzero(labels != IGNORED)
        assert len(chosen) == 3
        assert chosen[0] == 0
        np.testing.assert_array_equal(labels[chosen], np.array(ids)[chosen])
        assert (masked[chosen[1:]] == TOKENS.mask_id).all()


def test_strict_labels_are_the_mask_token():
    labels = mask_significant([THE] * 7, WORDS, np.random.default_rng(0), TOKENS, strict=True)[1]
    assert sorted(labels) == [IGNORED] * 6 + [TOKENS.mask_id]


class Fixed:
    """Generator of fixed draws."""

    def __init__(self, uniform, *integers):
        self.uniform, self.numbers = uniform, list(integers)

    def choice(self, population, size, replace):
        return np.arange(size)

    def random(self):
        return self.uniform

    def integers(self, high):
        assert self.numbers[0] < high
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("draws", "strict", "expected"),
    [
        ((0.79,), False, TOKENS.mask_id),
        ((0.9,), False, DOG),
        ((0.85, 1, 0), False, MAN),  # the second significant word is 'men', its first inflection 'man'
        ((0.85, 1, 2), False, TOKENS.unknown_id),  # 'people' is no token
        ((0.85, 3), False, XYLOPHONE),
        ((0.85, 3), True, TOKENS.unknown_id),  # its first character, which is no token
    ],
)
def test_what_takes_a_word_s_place(draws, strict, expected):
    masked, labels = mask_significant([DOG] * 3, WORDS, Fixed(*draws), TOKENS, strict=strict)
    assert masked.tolist() == [expected, DOG, DOG]
    assert labels.tolist() == [DOG, IGNORED, IGNORED]


def test_a_caption_is_restored():
    ids, labels = np.array([2, 4, 7, 3]), np.array([-1, 8, -1, -1])
    assert restore(ids, labels).tolist() == [2, 8, 7, 3]


@pytest.mark.parametrize(
    ("ids", "allowed"),
    [
        ([2, THE, MAN, OF, 3, 0], {2}),
        ([2, THE, OF, 3, 0, 0], {1, 2}),
        ([2, 3, 0, 0, 0, 0], {0, 1, 2}),
        ([2, MAN, DOG, MEN, MAN, 3], {1, 2, 3, 4}),
    ],
)
def test_the_words_for_matching(ids, allowed):
    for seed in range(20):
        chosen = choose_words(np.array(ids), WORDS, np.random.default_rng(seed), KEPT_SPECIAL)
        assert chosen.shape == (3,)
        assert set(chosen.tolist()) <= allowed
        assert len(set(chosen.tolist())) == min(3, len(allowed)) or len(allowed) < 3


def test_attended_words_are_drawn_in_proportion():
    ids = np.tile([2, THE, MAN, OF, 3, 0, 0], (4000, 1))
    importance = np.tile(np.array([9, 1, 3, 1, 9, 9, 9], np.float32), (4000, 1))
    drawn = np.asarray(draw_attended(jax.random.key(0), importance, ids, (0, 2, 3)))
    assert (drawn.sum(1) == 1).all()
    np.testing.assert_allclose(drawn.mean(0), [0, 0.2, 0.6, 0.2, 0, 0, 0], atol=0.03)


def test_the_number_of_attended_words():
    ids = np.zeros((3, 30), int)
    ids[0, :21], ids[1, :6] = THE, THE
    drawn = np.asarray(draw_attended(jax.random.key(0), np.ones((3, 30), np.float32), ids, (0, 2, 3)))
    assert drawn.sum(1).tolist() == [3, 1, 1]
    masked, labels = map(np.asarray, mask_drawn(ids, drawn, 4))
    assert (masked[drawn] == 4).all()
    assert (labels[drawn] == ids[drawn]).all()
    assert (labels[~drawn] == IGNORED).all()
    assert (masked[~drawn] == ids[~drawn]).all()


def test_half_of_the_groups_have_attentive_masks():
    ids, labels = np.full((64, 5), THE), np.full((64, 5), IGNORED)
    options = {"special": (0, 2, 3), "mask_id": 4, "groups": 32}
    found = sometimes_attended(jax.random.key(0), np.ones((64, 5), np.float32), ids, ids, labels, **options)
    masked = (np.asarray(found[1]) != IGNORED).any(1).reshape(32, 2)
    np.testing.assert_array_equal(masked[:, 0], masked[:, 1])
    assert 8 < masked[:, 0].sum() < 24

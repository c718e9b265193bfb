"""Text arrays of an example, false captions, and the vocabulary of answers."""

import numpy as np
import pytest

from vlm_jax.errors import DataError
from vlm_jax.systems.snps3 import answers, captions
from vlm_jax.systems.snps3.masking import SignificantWords, restore
from vlm_jax.text.masking import IGNORED
from vlm_jax.text.word_pieces import SPECIAL, WordPieces

TOKENS = WordPieces([*SPECIAL, *(f"w{number}" for number in range(40))])
WORDS = SignificantWords.from_ranks(np.array([9] * 25 + [0] * 20), 3, {})
TEXT = " ".join(f"w{number}" for number in range(40))


@pytest.mark.parametrize("words", [None, WORDS])
def test_masked_and_raw_captions_share_their_window(words):
    settings = captions.CaptionSettings(TOKENS, 12, words)
    starts = set()
    for seed in range(20):
        made = captions.masked_caption(TEXT, "w3 w4", np.random.default_rng(seed), settings)
        np.testing.assert_array_equal(restore(made["masked"], made["labels"]), made["raw"])
        assert made["raw_mask"].tolist() == [1] * 12
        assert made["labels"][[0, -1]].tolist() == [IGNORED] * 2
        assert made["false"].tolist() == [2, 8, 9, 3, *[0] * 8]
        assert made["false_mask"].sum() == 4
        assert all(array.dtype == np.int32 for array in made.values())
        starts.add(int(made["raw"][1]))
    assert len(starts) > 8
    assert ("words" in made) == (words is not None)


def test_the_words_for_matching_are_those_of_the_caption():
    settings = captions.CaptionSettings(TOKENS, 12, WORDS)
    made = captions.masked_caption("w1 w30 w2 w31 w3 w32", "", np.random.default_rng(0), settings)
    assert sorted(made["words"]) == [2, 4, 6]


def test_strict_windows_are_independent():
    settings = captions.CaptionSettings(TOKENS, 12, WORDS, strict=True)
    made = [captions.masked_caption(TEXT, "", np.random.default_rng(seed), settings) for seed in range(10)]
    assert any((restore(each["masked"], each["labels"]) != each["raw"]).any() for each in made)


def test_a_fixed_text_is_its_beginning():
    ids, mask = captions.fixed_text(TEXT, captions.CaptionSettings(TOKENS, 6))
    assert ids.tolist() == [2, 5, 6, 7, 8, 3]
    assert mask.tolist() == [1] * 6


def test_false_captions_are_of_other_videos():
    texts, videos = [["a"], ["b", "c"], ["d"]], [0, 1, 0]
    found = {captions.draw_false_caption(texts, videos, 0, np.random.default_rng(seed)) for seed in range(60)}
    assert found == {"b", "c", captions.DUMMY}


def test_the_vocabulary_of_answers(tmp_path):
    found = answers.most_frequent(["Dog ", "dog", "cat", "a cat", "ant", "cat"], 3)
    assert found == ["cat", "dog", "a cat"]
    assert answers.labels_of(["DOG", "ant", "cat"], found) == [1, -1, 0]
    answers.write(tmp_path / "answers.json", found)
    assert answers.read(tmp_path / "answers.json") == found


@pytest.mark.parametrize("content", [None, "{}", '["a", "a"]', "[1]", "["])
def test_files_that_are_no_vocabulary_of_answers(tmp_path, content):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="expected a JSON list of"):
        answers.read(path)

import numpy as np
import pytest

from vlm_jax.text import word_list

VOCABULARY = {word: number for number, word in enumerate(["cut", "the", "Onion", "nan", "None", "it's", "naïve"], 1)}


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("cut the Onion", [1, 2, 3, 0, 0]),
        ("the cut the cut the cut", [2, 1, 2, 1, 2]),  # repeated words stay, the sixth is too much
        ("cut unknown unknown unknown unknown the", [1, 2, 0, 0, 0]),  # unknown words take no place
        ("onion", [0, 0, 0, 0, 0]),  # case counts
        ("  it's, cut-the   naïve!", [6, 1, 2, 7, 0]),
        ("it’s", [0, 0, 0, 0, 0]),  # a typographic apostrophe divides
        ("", [0, 0, 0, 0, 0]),
        (None, [5, 0, 0, 0, 0]),
        (float("nan"), [4, 0, 0, 0, 0]),
    ],
)
def test_encode(sentence, expected):
    ids = word_list.encode(sentence, VOCABULARY, 5)
    assert ids.dtype == np.int32
    assert ids.tolist() == expected


def test_encode_in_lower_case():
    assert word_list.encode("CUT The Onion NAÏVE", VOCABULARY, 3, lower=True).tolist() == [1, 2, 7]


def test_words():
    assert word_list.words("Stir_well 2 'n' re-heat: Über") == ["Stir_well", "2", "'n'", "re", "heat", "Über"]


def test_load_numbers_words_from_one(tmp_path):
    path = tmp_path / "words.npy"
    np.save(path, np.array(["a", "naïve", "c"]))
    assert word_list.load(path, 4) == {"a": 1, "naïve": 2, "c": 3}
    # As many words as rows: the last has no row.
    assert word_list.load(path, 3) == {"a": 1, "naïve": 2}


def test_load_takes_bytes(tmp_path):
    np.save(tmp_path / "words.npy", np.array(["a", "naïve".encode()], "S"))
    assert word_list.load(tmp_path / "words.npy", 3) == {"a": 1, "naïve": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"a\nb\nc\n", "not a .npy array of strings"),
        (np.arange(3), "found int64 of shape"),
        (np.array([["a", "b", "c"]]), r"shape \(1, 3\)"),
        (np.array(["a", "b", "c"], object), "not a .npy array of strings"),
        (np.array(["a", "b"]), "holds 2 words, but config.text.rows = 4 makes room for 3"),
        (np.array(["a", "b", "c", "d", "e"]), "holds 5 words"),
        (np.array(["a", "b", "a"]), "1 words occur twice"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "words.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(word_list.VocabularyError, match=message) as caught:
        word_list.load(path, 4)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_most_frequent_words_come_first_then_the_alphabet(tmp_path):
    counts = word_list.count_words(["b a b", "c a b d", float("nan")])
    built = word_list.most_frequent(counts, 9)
    assert built.tolist() == ["b", "a", "c", "d", "nan"]
    assert word_list.most_frequent(counts, 2).tolist() == ["b", "a"]
    np.save(tmp_path / "words.npy", built)
    assert word_list.load(tmp_path / "words.npy", 6)["nan"] == 5


def test_an_empty_file_is_one_line(tmp_path):
    (tmp_path / "empty.npy").touch()
    with pytest.raises(word_list.VocabularyError, match=r"empty\.npy: not a \.npy array of strings"):
        word_list.load(tmp_path / "empty.npy", 3)


def test_words_are_counted_in_lower_case_unless_case_is_kept():
    assert word_list.count_words(["Cut the onion", "CUT it"]) == {"cut": 2, "the": 1, "onion": 1, "it": 1}
    assert word_list.count_words(["Cut cut"], lower=False) == {"Cut": 1, "cut": 1}


def test_what_a_list_lacks_is_counted_and_named():
    found = word_list.cover(["cut the Onion", "Cut blorp blorp", "", "zing"], VOCABULARY)
    assert (found.sentences, found.words, dict(found.unknown)) == (4, 7, {"Cut": 1, "blorp": 2, "zing": 1})
    assert found.empty == ["Cut blorp blorp", "", "zing"]
    assert found.describe("words.npy") == (
        "4 of 7 words are not in words.npy and are dropped (blorp, Cut, zing); 3 of 4 sentences have no known word, so "
        "their embedding says nothing, such as 'Cut blorp blorp'"
    )
    assert word_list.cover(["cut it's"], VOCABULARY).describe("words.npy") == ""
    assert not word_list.cover(["CUT"], VOCABULARY, lower=True).unknown


def test_a_list_says_whether_sentences_are_lower_cased(tmp_path):
    assert word_list.lower_cases(tmp_path / "words.npy") is None
    assert word_list.lower_cases("") is None
    for content, expected in (('{"lower_case": true}', True), ('{"lower_case": false}', False)):
        (tmp_path / "words.json").write_text(content)
        assert word_list.lower_cases(tmp_path / "words.npy") is expected
    for content in ("", "[]", '{"lower_case": 1}'):
        (tmp_path / "words.json").write_text(content)
        with pytest.raises(word_list.VocabularyError, match=r"words\.json: expected an object with 'lower_case'"):
            word_list.lower_cases(tmp_path / "words.npy")

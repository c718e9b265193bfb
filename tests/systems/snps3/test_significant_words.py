"""Mining of significant words: tables, files, taggers and lemmas."""

import json
import sys
import types

import numpy as np
import pytest

from data_prep.snps3 import taggers
from vlm_jax.errors import ConfigError, DataError, MissingPackageError
from vlm_jax.systems.snps3 import significant_words
from vlm_jax.systems.snps3.masking import SignificantWords
from vlm_jax.text import vocabulary

CAPTIONS = ["A man rides a horse", "Two men ride horses in the snow", "the man is cooking", "a red horse runs, slowly"]


def table(counts, names, **options):
    return significant_words.tabulate(counts, names, significant_words.ABANDONED["webvid"], **options)


def test_ranks_count_the_tokens_that_occur_more_often():
    counts = {"NOUN": {"aa": 3, "bb": 3, "cc": 1, "x": 9, "background": 9, "zz": 9}, "NUM": {"dd": 5}}
    made = table(counts, ["aa", "bb", "cc", "dd", "x", "background"])
    assert made.total.tolist() == [3, 3, 1, 0, 0, 0]
    assert made.rank.tolist() == [0, 0, 2, 3, 3, 3]


def test_words_are_compared_with_pieces_without_their_mark():
    made = table({"VERB": {"run": 2, "##run": 9}}, ["\u2581run", "run"], words=["run", ""])
    assert made.total.tolist() == [2, 0]
    assert made.columns()["name"] == ["\u2581run", "run"]


def test_small_shares_are_removed():
    reduced = significant_words.reduce(table({"VERB": {"cut": 2}, "NOUN": {"cut": 5}, "ADJ": {"cut": 3}}, ["cut"]))
    np.testing.assert_allclose(reduced.shares, [[0, 0.625, 0.375]])
    assert reduced.counts.tolist() == [[0, 5, 3]]
    assert reduced.total.tolist() == [10]


def test_counts_that_the_thresholds_do_not_divide():
    made = significant_words.reduce(table({"VERB": {"cut": 2}}, ["cut"]))
    with pytest.raises(DataError, match="counts of the kind 'verb' are 2 to 2, expected to reach 50000"):
        significant_words.choices(made)


@pytest.mark.parametrize("kind", ["vocab.txt", "text.model"])
def test_from_captions_to_ranks_of_any_vocabulary(tmp_path, kind):
    path = tmp_path / kind
    if kind == "vocab.txt":
        path.write_text("\n".join(vocabulary.word_pieces(CAPTIONS * 3, 200)))
    else:
        vocabulary.write_sentence_pieces(path, CAPTIONS * 3, 60)
    tokens = vocabulary.load(path)
    names = [tokens.piece(token) for token in range(tokens.vocabulary_size)]
    counts = significant_words.count_words(map(taggers.make_tagger("rules"), CAPTIONS))
    words = [tokens.word_of(token) for token in range(tokens.vocabulary_size)]
    made = significant_words.reduce(table(counts, names, words=words))
    significant_words.write(tmp_path / "count.json", made)
    ranks = significant_words.read_ranks(tmp_path / "count.json", names)
    horse = tokens.id_of("horse")
    assert horse != tokens.unknown_id
    assert ranks[horse] == 0
    assert horse in SignificantWords.from_ranks(ranks, 0, {}).ids
    assert (tmp_path / "count.csv").read_bytes().splitlines()[0].startswith(b"id,name,total_count,verb_count")
    with pytest.raises(ConfigError, match="words_top_k: expected less than the largest rank"):
        SignificantWords.from_ranks(ranks, 3000, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected JSON with the lists 'name' and 'rank'"),
        ("[]", "expected JSON with the lists 'name' and 'rank'"),
        ({"name": ["a"], "rank": []}, "expected one rank per name, found 0 and 1"),
        (
            {"name": ["a", "c"], "rank": [0, 1]},
            "another vocabulary, 2 of them, expected 2; the first .* is token 1",
        ),
        ({"name": ["a"], "rank": [0]}, "another vocabulary, 1 of them, expected 2; the first .* is token 1"),
    ],
)
def test_files_of_another_vocabulary(tmp_path, content, message):
    path = tmp_path / "count.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        significant_words.read_ranks(path, ["a", "b"])
    assert str(path) in str(caught.value)


def test_words_with_one_lemma():
    words = ["", "run", "runs", "running", "cat", "2", "runs!"]
    groups = significant_words.lemma_groups(words, taggers.lemma)
    inflections = ["run", "runs", "running"]
    assert groups == [[], inflections, inflections, inflections, [], [], []]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("runs", "run"), ("running", "run"), ("rides", "ride"), ("riding", "ride"), ("washes", "wash")),
        *(("horses", "horse"), ("houses", "house"), ("glasses", "glass"), ("prizes", "prize"), ("boxes", "box")),
        *(
            ("cries", "cry"),
            ("cooked", "cook"),
            ("falling", "fall"),
            ("grass", "grass"),
            ("bus", "bus"),
            ("king", "king"),
        ),
    ],
)
def test_lemmas_by_ending(word, expected):
    assert taggers.lemma(word) == expected


def test_tags_by_rules():
    found = dict(taggers.tag_by_rules("Two beautiful dogs quickly run after the RED ball, jumping over a cut tree"))
    kinds = {
        "Two": "NUM",
        "beautiful": "ADJ",
        "dogs": "NOUN",
        "run": "VERB",
        "RED": "ADJ",
        "ball": "NOUN",
        ",": "PUNCT",
    }
    assert found | kinds | {"jumping": "VERB", "ball": "NOUN", "tree": "NOUN", "cut": "NOUN", "the": "X"} == found


def test_taggers_by_name(monkeypatch):
    with pytest.raises(ConfigError, match="'hmm' is not one of spacy, nltk, rules"):
        taggers.make_tagger("hmm")
    token = types.SimpleNamespace(text="dogs", pos_="NOUN")
    spacy = types.SimpleNamespace(load=lambda name, disable: lambda sentence: [token])
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    assert taggers.make_tagger("spacy")("dogs") == [("dogs", "NOUN")]

    def fail(*arguments, **options):
        raise OSError("no model")

    spacy.load = fail
    with pytest.raises(DataError, match="python -m spacy download en_core_web_sm"):
        taggers.make_tagger("spacy")


def test_the_best_installed_tagger(monkeypatch):
    installed = []
    monkeypatch.setattr(taggers.importlib.util, "find_spec", lambda name: name in installed or None)
    assert taggers.default_tagger() == "rules"
    installed += ["nltk"]
    assert taggers.default_tagger() == "nltk"
    installed += ["spacy"]
    assert taggers.default_tagger() == "spacy"


def test_a_missing_tagger_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vlm_jax\[words\]'"):
        taggers.make_tagger("spacy")


def test_nltk_needs_its_model(monkeypatch):
    def tag(words, tagset):
        return [(word, "NOUN") for word in words]

    nltk = types.SimpleNamespace(pos_tag=tag, word_tokenize=str.split)
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    assert taggers.make_tagger("nltk")("two dogs") == [("two", "NOUN"), ("dogs", "NOUN")]

    def fail(sentence):
        raise LookupError("no model")

    nltk.word_tokenize = fail
    with pytest.raises(DataError, match=r"python -m nltk\.downloader punkt_tab"):
        taggers.make_tagger("nltk")

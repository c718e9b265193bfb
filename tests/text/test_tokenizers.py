"""Sub-word tokenisers: both kinds behind one interface, WordPiece's own rules, and the making of vocabularies."""

import builtins

import numpy as np
import pytest

from vlm_jax.errors import MissingPackageError
from vlm_jax.text import tokenizer, vocabulary
from vlm_jax.text.sentence_pieces import SentencePieces
from vlm_jax.text.tokenizer import TokenizerError
from vlm_jax.text.word_pieces import SPECIAL, WordPieces, basic_words, write_vocabulary

NOUNS, VERBS = "man woman dog cat girl boy horse".split(), "rides watches feeds paints washes".split()
SENTENCES = [f"the {one} {verb} a {other}, slowly" for one in NOUNS for other in NOUNS for verb in VERBS]
KINDS = {"wordpiece": "vocab.txt", "sentencepiece": "text.model"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of both kinds, made from the same sentences."""
    folder = tmp_path_factory.mktemp("vocabularies")
    write_vocabulary(folder / KINDS["wordpiece"], vocabulary.word_pieces(SENTENCES, 120))
    vocabulary.write_sentence_pieces(folder / KINDS["sentencepiece"], SENTENCES, 70)
    return {kind: folder / name for kind, name in KINDS.items()}


@pytest.fixture(params=KINDS)
def loaded(request, files):
    """A tokeniser of each kind."""
    return vocabulary.load(files[request.param])


def test_special_tokens_are_distinct_pieces_of_the_vocabulary(loaded):
    ids = [loaded.pad_id, loaded.unknown_id, loaded.cls_id, loaded.sep_id, loaded.mask_id]
    assert len(set(ids)) == 5
    assert all(0 <= token < loaded.vocabulary_size for token in ids)
    assert [loaded.piece(token) for token in ids] == list(SPECIAL)
    assert [loaded.word_of(token) for token in ids] == [""] * 5


def test_a_text_survives_encoding(loaded):
    ids = loaded.encode("The Woman   feeds a HORSE")
    assert loaded.decode(ids) == "the woman feeds a horse"
    assert all(isinstance(token, int) and 0 <= token < loaded.vocabulary_size for token in ids)
    whole, _ = tokenizer.frame(ids, 20, loaded)
    assert loaded.decode(whole) == "the woman feeds a horse"
    assert loaded.encode("") == []


def test_special_tokens_come_only_from_text_that_cannot_be_expressed(loaded):
    special = {loaded.pad_id, loaded.cls_id, loaded.sep_id, loaded.mask_id}
    assert not special & set(loaded.encode("the dog rides"))
    assert loaded.unknown_id not in loaded.encode("the dog rides")
    assert loaded.unknown_id in loaded.encode("\u03c0")


def test_whole_words_have_ids(loaded):
    token = loaded.id_of("dog")
    assert token != loaded.unknown_id
    assert loaded.word_of(token) == "dog"
    assert loaded.encode("dog") == [token]
    assert loaded.id_of("zeppelin") == loaded.unknown_id
    words = [loaded.word_of(each) for each in range(loaded.vocabulary_size)]
    assert {"woman", "horse"} < set(words)
    assert "" in words[5:]  # a continuation


def test_the_fingerprint_is_that_of_the_vocabulary(loaded, files, tmp_path):
    path = next(path for kind, path in files.items() if vocabulary.load(path).fingerprint == loaded.fingerprint)
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert vocabulary.load(copy).fingerprint == loaded.fingerprint
    assert len({vocabulary.load(path).fingerprint for path in files.values()}) == 2


def test_a_frame_is_padded_and_a_window_fits(loaded):
    ids = loaded.encode("the man watches a cat")
    whole, mask = tokenizer.frame(ids, len(ids) + 4, loaded)
    assert whole.tolist() == [loaded.cls_id, *ids, loaded.sep_id, loaded.pad_id, loaded.pad_id]
    assert mask.tolist() == [1] * (len(ids) + 2) + [0, 0]
    assert whole.dtype == mask.dtype == np.int32
    with pytest.raises(ValueError):
        tokenizer.frame(ids, len(ids) + 1, loaded)


def test_windows_begin_everywhere_where_they_fit():
    random = np.random.default_rng(0)
    starts = {tokenizer.window(12, 10, random).start for _ in range(100)}
    assert starts == {0, 1, 2, 3, 4}
    assert tokenizer.window(12, 10) == slice(0, 8)
    assert tokenizer.window(3, 10, random) == slice(0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_one_line(tmp_path, kind):
    with pytest.raises(TokenizerError, match=KINDS[kind]) as caught:
        vocabulary.load(tmp_path / KINDS[kind])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "the token 'a' occurs twice"),
        ("[PAD]\n[UNK]\na\n", r"found no \[CLS\], \[SEP\], \[MASK\]"),
        (b"\xff\xfe", "expected a text file with one token per line"),
    ],
)
def test_lists_that_are_no_vocabulary(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=message) as caught:
        vocabulary.load(path)
    assert str(path) in str(caught.value)


def test_models_that_are_no_tokeniser(tmp_path):
    path = tmp_path / "text.model"
    path.write_bytes(b"no model")
    with pytest.raises(TokenizerError, match="not a sentencepiece model"):
        vocabulary.load(path)
    import sentencepiece

    plain = {"sentence_iterator": iter(SENTENCES), "vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(tmp_path / "text"), num_threads=1, **plain)
    with pytest.raises(TokenizerError, match=r"expected the symbols \[PAD\] or <pad>, \[CLS\] or <cls>"):
        vocabulary.load(path)


def test_a_missing_package_names_its_extra(files, monkeypatch):
    found = builtins.__import__

    def without(name, *rest, **named):
        if name == "sentencepiece":
            raise ModuleNotFoundError("none", name=name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"pip install 'vlm_jax\[text\]'"):
        SentencePieces(b"")
    with pytest.raises(MissingPackageError):
        vocabulary.write_sentence_pieces(files["sentencepiece"], SENTENCES, 70)


def test_sentences_too_few_for_a_model_are_one_line(tmp_path):
    with pytest.raises(TokenizerError, match="no model can be made of these sentences"):
        vocabulary.write_sentence_pieces(tmp_path / "text.model", [], 70)


def test_pairs_are_merged_by_frequency_then_alphabet():
    made = vocabulary.word_pieces(["ab ab ab cb", "abc"], 100)
    assert made == [*SPECIAL, "##b", "##c", "a", "c", "ab", "abc", "cb"]
    assert vocabulary.word_pieces(["ab ab ab cb", "abc"], 10)[-1] == "ab"


def test_a_merge_takes_every_place_of_a_repeated_pair():
    assert vocabulary.word_pieces(["aaaaa"], 9)[5:] == ["##a", "a", "##aa", "##aaaa"]
    tokens = WordPieces(vocabulary.word_pieces(["banana bandana"], 60))
    assert tokens.pieces("banana bandana") == ["banana", "bandana"]


def test_words_of_a_text():
    assert basic_words("Stop! [MASK] [mask] na\u00efve\u200bly") == ["stop", "!", "[MASK]", "[", "mask", "]", "naively"]


def test_longest_match_first_and_unknown_words():
    tokens = WordPieces([*SPECIAL, "un", "##able", "##a", "##ble", "a", "##"])
    assert tokens.pieces("unable unabl a") == ["un", "##able", "[UNK]", "a"]
    assert tokens.pieces("a" * 100)[:2] == ["a", "##a"]
    assert tokens.pieces("a" * 101) == ["[UNK]"]
    assert tokens.word_of(10) == "##"

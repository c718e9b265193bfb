"""Commands that make vocabularies, significant words and answers of SNP-S3."""

import json

import numpy as np
import pytest

from data_prep.commands import run_command
from data_prep.snps3 import answers, vocabulary, words
from vlm_jax.errors import DataError, UserError
from vlm_jax.systems.snps3 import answers as labels
from vlm_jax.systems.snps3 import significant_words
from vlm_jax.text import vocabulary as vocabularies
from vlm_jax.text.word_pieces import SPECIAL

CAPTIONS = ["A man rides a horse", "Two men ride horses in the snow", "the man is cooking", "a red horse runs", ""]


def run(*arguments):
    def add(commands):
        for module in (vocabulary, words, answers):
            module.add_commands(commands)

    run_command([str(argument) for argument in arguments], "", lambda _: None, add)


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"caption": text, "clip_name": "a.mp4"}) + "\n" for text in CAPTIONS))
    return path


@pytest.fixture
def pieces(tmp_path, captions):
    path = tmp_path / "vocab.txt"
    run("vocabulary", "--texts", captions, "--output", path, "--size", 200)
    return path


def read(path):
    return json.loads(path.read_text())


def test_vocabulary_of_captions(pieces):
    tokenizer = vocabularies.load(pieces)
    assert tokenizer.decode(tokenizer.encode("red horses cooking")) == "red horses cooking"


def test_vocabulary_of_questions_and_options(tmp_path):
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps({"qid": "q", "title": "what", "options": ["zebra", "yak"], "answer": "0"}))
    run("vocabulary", "--texts", path, "--output", tmp_path / "vocab.txt")
    assert {"what", "zebra", "yak"} <= set((tmp_path / "vocab.txt").read_text().split())


def test_sentencepiece_vocabulary(tmp_path, captions):
    run("vocabulary", "--texts", captions, "--output", tmp_path / "text.model", "--size", 50)
    tokenizer = vocabularies.load(tmp_path / "text.model")
    assert tokenizer.mask_id != tokenizer.unknown_id


def test_vocabulary_of_the_references_counts(tmp_path):
    path, names = tmp_path / "count_reprocess.json", [*SPECIAL, "man", "##s", "é"]
    path.write_text(json.dumps({"id": list(range(8)), "name": names, "rank": [0] * 8}))
    run("vocabulary", "--counts", path, "--output", tmp_path / "vocab.txt")
    tokenizer = vocabularies.load(tmp_path / "vocab.txt")
    assert [tokenizer.piece(token) for token in range(8)] == names
    with pytest.raises(DataError, match=r"--counts has WordPiece tokens"):
        run("vocabulary", "--counts", path, "--output", tmp_path / "text.model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected JSON with the list 'name'"),
        ('{"name": "abc"}', "expected a list of tokens as 'name'"),
        ('{"name": ["a", 3]}', "expected a list of tokens as 'name'"),
        ('{"name": ["a"]}', r"expected the tokens \[PAD\], \[UNK\]"),
    ],
)
def test_counts_that_are_no_vocabulary(tmp_path, content, message):
    (tmp_path / "counts.json").write_text(content)
    with pytest.raises(UserError, match=message):
        run("vocabulary", "--counts", tmp_path / "counts.json", "--output", tmp_path / "vocab.txt")
    assert not (tmp_path / "vocab.txt").exists()


def mine(captions, pieces, output, *more):
    source = ("--counts" if captions.suffix == ".json" else "--captions", captions)
    run("words", *source, "--vocabulary", pieces, "--output", output, "--tagger", "rules", *more)


def test_words_of_captions(tmp_path, captions, pieces, capsys):
    output = tmp_path / "words"
    mine(captions, pieces, output, "--top", 3)
    assert read(output / "counts.json")["NUM"] == {"Two": 1}
    assert read(output / "counts.json")["NOUN"]["man"] == 2
    tokenizer = vocabularies.load(pieces)
    names = [tokenizer.piece(token) for token in range(tokenizer.vocabulary_size)]
    ranks = significant_words.read_ranks(output / "ranks.json", names)
    assert ranks[tokenizer.id_of("horse")] == 0
    groups = significant_words.read_groups(output / "groups.json", tokenizer.vocabulary_size)
    assert set(groups[tokenizer.id_of("horse")]) == {"horse", "horses"}
    assert list(read(output / "words.json")) == list(read(output / "ranks.json"))
    assert (output / "ranks.csv").read_bytes().count(b"\r\n") == len(names) + 1
    assert "choices.json is left out, which training does not need" in capsys.readouterr().out
    mine(output / "counts.json", pieces, tmp_path / "again")
    assert (tmp_path / "again" / "ranks.json").read_bytes() == (output / "ranks.json").read_bytes()
    assert "set config.words.top to less than" in capsys.readouterr().out


def test_a_killed_run_continues_from_the_saved_counts(tmp_path, captions, pieces, monkeypatch):
    monkeypatch.setattr(words, "SAVED_EVERY", 2)
    mine(captions, pieces, tmp_path / "whole")
    whole = (tmp_path / "whole" / "counts.json").read_bytes()
    names = sorted(path.name for path in (tmp_path / "whole").glob("counts_*"))
    assert names == ["counts_0000002.json", "counts_0000004.json"]

    with monkeypatch.context() as patch:
        patch.setattr(words.taggers, "make_tagger", lambda _: killed_after(3))
        with pytest.raises(KeyboardInterrupt):
            mine(captions, pieces, tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").glob("counts*")] == ["counts_0000002.json"]
    seen, tag = [], words.taggers.tag_by_rules
    monkeypatch.setattr(words.taggers, "tag_by_rules", lambda text: seen.append(text) or tag(text))
    mine(captions, pieces, tmp_path / "killed")
    assert (tmp_path / "killed" / "counts.json").read_bytes() == whole
    assert seen == CAPTIONS[2:4], "captions that were counted are not tagged again"


def killed_after(count):
    texts = []

    def tag(text):
        texts.append(text)
        if len(texts) > count:
            raise KeyboardInterrupt
        return words.taggers.tag_by_rules(text)

    return tag


def test_a_folder_of_other_captions(tmp_path, captions, pieces):
    mine(captions, pieces, tmp_path / "words")
    captions.write_text(captions.read_text() + '{"caption": "more"}\n')
    with pytest.raises(DataError, match=r"settings.json: begun with other captions"):
        mine(captions, pieces, tmp_path / "words")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "no line has 'caption'"),
        ('{"clip_name": "a"}\nnot json\n', "no line has 'caption'"),
        (b"\xff\xfe\x00", "expected one JSON object per line"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path, pieces, content, message):
    path = tmp_path / "broken.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        mine(path, pieces, tmp_path / "words")
    assert str(path) in str(caught.value)


def test_broken_lines_are_skipped_and_counted(tmp_path, captions, pieces, capsys):
    captions.write_text(captions.read_text() + '{"caption": \n[]\n{"caption": 7}\n')
    mine(captions, pieces, tmp_path / "words")
    assert "2 lines skipped" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", '{"VERB": {}}', '{"VERB": [], "NOUN": [], "ADJ": [], "NUM": []}', "{"])
def test_counts_that_are_none(tmp_path, pieces, content):
    (tmp_path / "counts.json").write_text(content)
    with pytest.raises(DataError, match=r"counts.json: expected JSON with counts of words by VERB, NOUN, ADJ, NUM"):
        mine(tmp_path / "counts.json", pieces, tmp_path / "words")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a JSON list with the words of every token"),
        ({"a": ["b"]}, "expected a JSON list with the words of every token"),
        ([["a"], [3]], "expected a JSON list with the words of every token"),
        ([["a"]], "has groups of 1 tokens, expected those of a vocabulary of 2"),
    ],
)
def test_groups_of_another_vocabulary(tmp_path, content, message):
    path = tmp_path / "groups.json"
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        significant_words.read_groups(path, 2)


def test_lemmas_are_spacys_with_its_tagger(monkeypatch):
    monkeypatch.setattr(words.taggers, "_load_spacy", lambda *_: lambda word: [type("", (), {"lemma_": word[::-1]})])
    assert words.taggers.make_lemmatizer("spacy")("abc") == "cba"
    assert words.taggers.make_lemmatizer("rules")("dogs") == "dog"


def test_answers(tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    rows = [("who", "man"), ("who", "Man "), ("what", "dance"), ("how", ["two", "2"]), ("x", 7), ("y", "")]
    path.write_text("".join(json.dumps({"caption": text, "label": label}) + "\n" for text, label in rows))
    run("answers", "--questions", path, "--output", tmp_path / "answers.json", "--size", 2)
    assert labels.read(tmp_path / "answers.json") == ["man", "2"]
    assert "2 answers, those of 3 of 5 training answers (60.0%)" in capsys.readouterr().out


def test_labels_that_need_no_vocabulary(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"caption": "who", "label": 3}\n')
    with pytest.raises(DataError, match="only answers in words need a vocabulary"):
        run("answers", "--questions", path, "--output", tmp_path / "answers.json")
    with pytest.raises(DataError, match="--size: expected at least 1, found 0"):
        run("answers", "--questions", path, "--output", tmp_path / "answers.json", "--size", 0)


def test_ranks_of_a_sentencepiece_model(tmp_path, captions):
    model = tmp_path / "text.model"
    run("vocabulary", "--texts", captions, "--output", model, "--size", 60)
    mine(captions, model, tmp_path / "words", "--top", 2)
    tokenizer = vocabularies.load(model)
    found = read(tmp_path / "words" / "ranks.json")
    assert np.argmin(found["rank"]) == tokenizer.id_of("horse")

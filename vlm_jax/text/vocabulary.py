"""Vocabularies of sub-word tokenisers: loading them, and making small ones from sentences."""

import collections
import heapq
import io
import itertools
from collections.abc import Iterable
from pathlib import Path

from vlm_jax.errors import missing_package
from vlm_jax.files import write_atomically
from vlm_jax.text.sentence_pieces import SentencePieces
from vlm_jax.text.tokenizer import Tokenizer, TokenizerError
from vlm_jax.text.word_pieces import CONTINUED, SPECIAL, WordPieces, basic_words


def load(path: str | Path) -> Tokenizer:
    """Return the tokeniser of a file: sentencepiece for `.model`, else WordPiece with one token per line.

    Raises:
      TokenizerError: If the file is missing, is of another kind, or lacks a special token.
      MissingPackageError: If the package sentencepiece is needed and missing.
    """
    return (SentencePieces if Path(path).suffix == ".model" else WordPieces).load(path)


def word_pieces(sentences: Iterable[str], size: int) -> list[str]:
    """Return WordPiece pieces for sentences: special tokens, characters, then merged pairs, most frequent first.

    Equally frequent pairs are merged in alphabetical order. The list is shorter than `size` where no pair is left.

    Args:
      sentences: Sentences; words are those of `basic_words`.
      size: Number of pieces at most. All characters are kept, even beyond this number.
    """
    counts = collections.Counter(word for sentence in sentences for word in basic_words(sentence))
    words = [([word[0], *(CONTINUED + each for each in word[1:])], count) for word, count in sorted(counts.items())]
    pieces = dict.fromkeys([*SPECIAL, *sorted({piece for split, _ in words for piece in split})])
    pairs, places = collections.Counter[tuple[str, str]](), collections.defaultdict(set)
    for index, (split, count) in enumerate(words):
        for pair in itertools.pairwise(split):
            pairs[pair] += count
            places[pair].add(index)
    # Most frequent pairs first; counts that have changed since are skipped.
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while len(pieces) < size and heap:
        count, best = heapq.heappop(heap)
        if -count != pairs[best] or not count:
            continue
        merged = best[0] + best[1].removeprefix(CONTINUED)
        pieces[merged] = None
        changed = set()
        for index in sorted(places.pop(best)):
            split, count = words[index]
            for pair in itertools.pairwise(split):
                pairs[pair] -= count
                changed.add(pair)
            split[:] = _merge(split, best, merged)
            for pair in itertools.pairwise(split):
                pairs[pair] += count
                places[pair].add(index)
                changed.add(pair)
        for pair in changed:
            heapq.heappush(heap, (-pairs[pair], pair))
    return list(pieces)


def _merge(split: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    joined = []
    for piece in split:
        if joined and (joined[-1], piece) == pair:
            joined[-1] = merged
        else:
            joined.append(piece)
    return joined


def write_sentence_pieces(path: Path, sentences: Iterable[str], size: int) -> None:
    """Train a sentencepiece model (unigram, lower case) with the special tokens of `SentencePieces` and write it.

    Args:
      path: File to write, `.model`.
      sentences: Sentences.
      size: Number of pieces at most.

    Raises:
      TokenizerError: If sentencepiece cannot make a model of the sentences.
      MissingPackageError: If the package sentencepiece is missing.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise missing_package(error) from None
    model = io.BytesIO()
    pad, unknown, *controls = SPECIAL
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece=pad,
            unk_piece=unknown,
            control_symbols=controls,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(f"{path}: no model can be made of these sentences ({error})") from None
    write_atomically(path, model.getvalue())

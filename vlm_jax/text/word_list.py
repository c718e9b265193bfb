"""Tokeniser of MIL-NCE: words are looked up in a list, and unknown words are dropped.

Source: antoine77340/MIL-NCE_HowTo100M, howto100m_loader.py and youcook_loader.py.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from vlm_jax.errors import UserError

WORD = re.compile(r"[\w']+")
"""Pattern of a word: Unicode letters, digits, underscores and apostrophes."""


class VocabularyError(UserError):
    """Error of a word list that cannot be used; its line names the file."""


def words(sentence: object) -> list[str]:
    """Return the words of `str(sentence)` in order; None gives 'None', and a missing csv cell (NaN) gives 'nan'."""
    return WORD.findall(str(sentence))


def encode(sentence: object, vocabulary: Mapping[str, int], length: int, *, lower: bool = False) -> np.ndarray:
    """Return the ids of the first known words of a sentence, int32 `[length]`, padded with 0 at the end.

    If `lower` is true, the sentence is lower-cased first. The reference's loaders do not lower-case. Its
    released model lower-cases sentences, and so does everything that reads a word list made by `data_prep`.
    """
    known = [vocabulary[word] for word in words(str(sentence).lower() if lower else sentence) if word in vocabulary]
    ids = np.zeros(length, np.int32)
    ids[: len(known[:length])] = known[:length]
    return ids


def load(path: str | Path, rows: int) -> dict[str, int]:
    """Read a word list such as the reference's `dict.npy` and return the id of every word.

    Entry i has id i + 1; id 0 is padding.

    Args:
      path: Array of strings, `.npy`.
      rows: Number of rows of the word table, padding included. The list holds one word fewer. It may hold as many, but
        then its last word is dropped.

    Raises:
      VocabularyError: If the file is missing or holds another kind of array, or if words are repeated or their number
        does not fit.
    """
    try:
        entries = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise VocabularyError(f"vocabulary {path or '(no path)'}: no such file (config.text.vocabulary)") from None
    except (ValueError, OSError, EOFError) as error:
        raise VocabularyError(f"vocabulary {path}: not a .npy array of strings ({error})") from None
    if entries.ndim != 1 or entries.dtype.kind not in "US":
        raise VocabularyError(
            f"vocabulary {path}: expected a list of strings, found {entries.dtype} of shape {entries.shape}"
        )
    if len(entries) not in (rows - 1, rows):
        raise VocabularyError(
            f"vocabulary {path}: holds {len(entries)} words, but config.text.rows = {rows} makes room for {rows - 1}"
        )
    texts = [entry.decode() if isinstance(entry, bytes) else str(entry) for entry in entries[: rows - 1]]
    vocabulary = {word: index for index, word in enumerate(texts, start=1)}
    if len(vocabulary) != len(texts):
        raise VocabularyError(f"vocabulary {path}: {len(texts) - len(vocabulary)} words occur twice")
    return vocabulary


def count_words(sentences: Iterable[object], *, lower: bool = True) -> collections.Counter[str]:
    """Count the words of sentences; if `lower` is true, in lower case."""
    texts = (str(sentence).lower() if lower else sentence for sentence in sentences)
    return collections.Counter(word for text in texts for word in words(text))


def most_frequent(counts: Mapping[str, int], size: int) -> np.ndarray:
    """Return the `size` most frequent words, ties in alphabetical order, as an array that `load` reads once saved."""
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return np.array(ordered[:size], dtype=np.str_)


def settings_path(path: str | Path) -> Path:
    """Return the path of a word list's settings: `words.json` for `words.npy`."""
    return Path(path).with_suffix(".json")


def lower_cases(path: str | Path) -> bool | None:
    """Return `lower_case` of a word list's settings: if true, sentences are lower-cased first. None without settings.

    Raises:
      VocabularyError: If the settings cannot be read.
    """
    if not path or not (settings := settings_path(path)).is_file():
        return None
    try:
        found = json.loads(settings.read_text(encoding="utf-8"))["lower_case"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, bool):
        raise VocabularyError(f"{settings}: expected an object with 'lower_case', true or false")
    return found


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Coverage of sentences by a word list.

    Attributes:
      sentences: Number of sentences.
      words: Number of words in them.
      unknown: Words that the list lacks, with their number of occurrences.
      empty: Sentences without any known word.
    """

    sentences: int
    words: int
    unknown: collections.Counter[str]
    empty: list[str]

    def describe(self, path: str | Path) -> str:
        """Return one line on the words that are dropped, '' if there are none."""
        lost = self.unknown.total()
        if not lost and not self.empty:
            return ""
        examples = ", ".join(word for word, _ in self.unknown.most_common(3))
        line = f"{lost} of {self.words} words are not in {path} and are dropped" + (f" ({examples})" if lost else "")
        if self.empty:
            line += (
                f"; {len(self.empty)} of {self.sentences} sentences have no known word, so their embedding says "
                f"nothing, such as {self.empty[0][:60]!r}"
            )
        return line


def cover(sentences: Iterable[object], vocabulary: Mapping[str, int], *, lower: bool = False) -> Coverage:
    """Return how far a word list covers sentences; if `lower` is true, these are lower-cased first."""
    count, total, unknown, empty = 0, 0, collections.Counter[str](), []
    for sentence in sentences:
        found = words(str(sentence).lower() if lower else sentence)
        lost = [word for word in found if word not in vocabulary]
        count, total = count + 1, total + len(found)
        unknown.update(lost)
        if len(lost) == len(found):
            empty.append(str(sentence))
    return Coverage(count, total, unknown, empty)

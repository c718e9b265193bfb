"""The MIL-NCE tokeniser: words looked up in a list, unknown ones dropped.

Source: antoine77340/MIL-NCE_HowTo100M, howto100m_loader.py and youcook_loader.py.
"""

import collections
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from vlm_jax.errors import UserError

WORD = re.compile(r"[\w']+")
"""Unicode letters, digits, underscores and apostrophes."""


class VocabularyError(UserError):
    """A word list that cannot be used; one line naming the file."""


def words(sentence: object) -> list[str]:
    """All words of `str(sentence)` in order: None is the word 'None', a missing csv cell (NaN) the word 'nan'."""
    return WORD.findall(str(sentence))


def encode(sentence: object, vocabulary: Mapping[str, int], length: int, *, lower: bool = False) -> np.ndarray:
    """Ids `[length]` of the first known words, padded with 0 at the end.

    Only the released model's raw-text path sets `lower`; the loaders take captions as they are.
    """
    known = [vocabulary[word] for word in words(str(sentence).lower() if lower else sentence) if word in vocabulary]
    ids = np.zeros(length, np.int32)
    ids[: len(known[:length])] = known[:length]
    return ids


def load(path: str | Path, rows: int) -> dict[str, int]:
    """Reads a word list such as the reference's `dict.npy`: entry i has id i+1, id 0 is padding.

    Args:
      path: A `.npy` array of strings.
      rows: Rows of the word table, padding included: the list holds one word fewer, or as many, the last then
        being out of reach.

    Raises:
      VocabularyError: for a missing file, another kind of array, repeated words, or a size that does not fit.
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


def build(sentences: Iterable[object], size: int | None = None) -> np.ndarray:
    """A word list of the most frequent words, ties in alphabetical order, as `np.save` writes and `load` reads."""
    counts = collections.Counter(word for sentence in sentences for word in words(sentence))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return np.array(ordered[:size], dtype=np.str_)

"""Vocabulary of answers for open-ended question answering: the most frequent ones of the training questions."""

import collections
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlm_jax.errors import DataError
from vlm_jax.files import write_atomically


def most_frequent(answers: Iterable[str], size: int) -> list[str]:
    """Return the `size` most frequent answers, in lower case, ties in alphabetical order."""
    counts = collections.Counter(map(_plain, answers))
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:size]


def labels_of(answers: Iterable[str], vocabulary: Sequence[str]) -> list[int]:
    """Return the labels of answers, -1 for one outside of the vocabulary.

    Training leaves such questions out; evaluation counts them as wrong.
    """
    known = {answer: label for label, answer in enumerate(vocabulary)}
    return [known.get(_plain(answer), -1) for answer in answers]


def write(path: Path, vocabulary: Sequence[str]) -> None:
    """Write a vocabulary as a JSON list whose index is the label."""
    write_atomically(path, (json.dumps(list(vocabulary), indent=0) + "\n").encode())


def read(path: Path) -> list[str]:
    """Return the vocabulary of a file of `write`.

    Raises:
      DataError: If the file is no list of distinct strings.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON list of answers ({error})") from None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found) or len(set(found)) < len(found):
        raise DataError(f"{path}: expected a JSON list of distinct answers")
    return found


def fingerprint(vocabulary: Sequence[str]) -> str:
    """Return the SHA-256 digest of a vocabulary in hexadecimal, '' for none."""
    return hashlib.sha256(json.dumps(list(vocabulary)).encode()).hexdigest() if vocabulary else ""


def _plain(answer: str) -> str:
    return answer.strip().lower()

"""Mining of significant words from captions, in the reference's three steps, and their files.

1. `count_words`: how often each word occurs as a verb, noun, adjective or number.
2. `tabulate`: counts, ranks and shares for the tokens of a vocabulary.
3. `reduce`: small shares are removed; `choices` lists tokens by frequency.

Training reads the ranks alone (`read_ranks`). Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.errors import DataError
from vlm_jax.files import write_atomically

COUNTED = ("VERB", "NOUN", "ADJ", "NUM")
KINDS = ("verb", "noun", "adj")
ABANDONED = {
    "webvid": ("background", "backgrounds", "be", "is", "was", "were", "are"),
    "images": ("be", "is", "was", "were", "are"),
}
"""Words that are never significant, for captions of WebVid and for those of COCO and Visual Genome."""
GROUPS = (50000, 30000, 10000, 3000, 0)

Counts = dict[str, dict[str, int]]


def count_words(tagged: Iterable[Sequence[tuple[str, str]]]) -> Counts:
    """Return the occurrences of words by part of speech; upper and lower case differ.

    Args:
      tagged: For each caption, its words with their parts of speech, from a tagger of `taggers.py`.
    """
    counts: Counts = {kind: {} for kind in COUNTED}
    for caption in tagged:
        for word, kind in caption:
            if kind in counts:
                counts[kind][word] = counts[kind].get(word, 0) + 1
    return counts


@dataclasses.dataclass(frozen=True)
class WordTable:
    """Counts of a vocabulary's tokens.

    Attributes:
      names: Tokens by id.
      total: Occurrences as a verb, noun or adjective, `[V]`.
      counts: Occurrences of each kind, `[V, 3]` in the order of `KINDS`.
      rank: Number of tokens that occur more often, `[V]`.
      shares: Shares of the kinds, `[V, 3]`; all 0 for a token that never occurs.
    """

    names: list[str]
    total: np.ndarray
    counts: np.ndarray
    rank: np.ndarray
    shares: np.ndarray

    def columns(self) -> dict[str, list[Any]]:
        """Return the lists of the reference's JSON, in its order."""
        columns: dict[str, list[Any]] = {"id": list(range(len(self.names))), "name": self.names}
        columns["total_count"] = self.total.tolist()
        columns |= {f"{kind}_count": self.counts[:, number].tolist() for number, kind in enumerate(KINDS)}
        columns["rank"] = self.rank.tolist()
        return columns | {f"{kind}_percentage": self.shares[:, number].tolist() for number, kind in enumerate(KINDS)}


def tabulate(
    counts: Mapping[str, Mapping[str, int]],
    names: Sequence[str],
    abandoned: Collection[str],
    words: Sequence[str] | None = None,
) -> WordTable:
    """Return the table of a vocabulary.

    Numbers, abandoned words and single characters do not count, nor do words that are no token.

    Args:
      counts: Result of `count_words`.
      names: Tokens by id.
      abandoned: Words that are never significant.
      words: Word of each token, '' for none (`Tokenizer.word_of`); None if the tokens themselves are words.
    """
    ids = {word: token for token, word in enumerate(names if words is None else words)}
    table = np.zeros((len(names), len(KINDS)), int)
    for number, kind in enumerate(KINDS):
        for word, count in counts.get(kind.upper(), {}).items():
            if len(word) > 1 and word in ids and word not in abandoned:
                table[ids[word], number] += count
    total = table.sum(1)
    rank = len(total) - np.searchsorted(np.sort(total), total, "right")
    return WordTable(list(names), total, table, rank, table / np.maximum(total, 0.1)[:, None])


def reduce(table: WordTable, threshold: float = 0.25) -> WordTable:
    """Return the table without shares and counts below a threshold; the other shares again sum to 1."""
    kept = table.shares >= threshold
    shares = np.where(kept, table.shares, 0)
    sums = shares.sum(1, keepdims=True)
    shares = np.divide(shares, sums, out=np.zeros_like(shares), where=sums > 0)
    return dataclasses.replace(table, counts=np.where(kept, table.counts, 0), shares=shares)


def choices(table: WordTable, top: int = 3000, groups: Sequence[int] = GROUPS) -> dict[str, Any]:
    """Return the reference's lists of tokens by kind and frequency, for a reduced table.

    `percentage_all` has the shares of every token of rank at most `top`. For each kind, `proper_choice_list` has the
    tokens whose count is that of some token of such a rank, and `group_num_lists` those that reach each threshold.

    Args:
      table: Result of `reduce`.
      top: Highest rank.
      groups: Descending thresholds of the counts.

    Raises:
      DataError: If no count reaches the first threshold, or all are above the last but one.
    """
    ranked = table.rank <= top
    shares = [
        {kind: share for kind, share in zip(KINDS, row, strict=True) if share} if near else {}
        for row, near in zip(table.shares.tolist(), ranked, strict=True)
    ]
    found: dict[str, Any] = {"percentage_all": shares}
    for number, kind in enumerate(KINDS):
        counts = table.counts[:, number]
        proper = np.flatnonzero(np.isin(counts, counts[ranked & (counts > 0)]))
        least, most = (counts[proper].min(), counts[proper].max()) if len(proper) else (0, 0)
        if most < groups[0] or least > groups[-2]:
            raise DataError(
                f"counts of the kind {kind!r} are {least} to {most}, expected to reach {groups[0]} from at most "
                f"{groups[-2]}"
            )
        lists = [proper[counts[proper] >= min(groups[: place + 1])].tolist() for place in range(len(groups))]
        found[f"{kind}_choice"] = {"proper_choice_list": proper.tolist(), "group_num_lists": lists}
    return found


def to_csv(table: WordTable) -> str:
    """Return the table in csv, with the names of the JSON's lists as header and CRLF line ends."""
    columns = table.columns()
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def write(path: Path, table: WordTable) -> None:
    """Write a table as JSON at `path`, and as csv beside it."""
    write_atomically(path, json.dumps(table.columns()).encode())
    write_atomically(path.with_suffix(".csv"), to_csv(table).encode())


def read_ranks(path: Path, names: Sequence[str]) -> np.ndarray:
    """Return the ranks of a vocabulary's tokens from the JSON of `write`, int64 `[V]`.

    Args:
      path: File of the reference or of `write`.
      names: Tokens of the vocabulary by id.

    Raises:
      DataError: If the file cannot be read or is of another vocabulary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, ranks = content["name"], content["rank"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected JSON with the lists 'name' and 'rank' ({error})") from None
    if len(ranks) != len(found):
        raise DataError(f"{path}: expected one rank per name, found {len(ranks)} and {len(found)}")
    if list(found) != list(names):
        place = next((i for i, pair in enumerate(zip(found, names, strict=False)) if pair[0] != pair[1]), len(found))
        raise DataError(
            f"{path}: counts the tokens of another vocabulary, {len(found)} of them, expected {len(names)}; the first "
            f"difference is token {place}"
        )
    return np.array(ranks, np.int64)


def lemma_groups(words: Sequence[str], lemma: Callable[[str], str]) -> list[list[str]]:
    """Return for every token the words of the vocabulary with the same lemma, itself included; [] if it is alone.

    Args:
      words: Word of each token, '' for none.
      lemma: Function that returns the lemma of a word.
    """
    lemmas = [lemma(word) if len(word) > 1 and word.isalpha() else "" for word in words]
    groups: dict[str, list[str]] = {}
    for word, base in zip(words, lemmas, strict=True):
        if base:
            groups.setdefault(base, []).append(word)
    return [list(groups[base]) if base and len(groups[base]) > 1 else [] for base in lemmas]


def write_groups(path: Path, groups: Sequence[Sequence[str]]) -> None:
    """Write lemma groups as the reference's `vocab_simi_list_new.json`: a JSON list with one list per token."""
    write_atomically(path, json.dumps(groups).encode())


def read_groups(path: Path, size: int) -> dict[int, list[str]]:
    """Return the words with the same lemma by token, without tokens that have none.

    Args:
      path: File of the reference or of `write_groups`.
      size: Number of tokens of the vocabulary.

    Raises:
      DataError: If the file cannot be read or is of another vocabulary.
    """
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON list with the words of every token ({error})") from None
    if not isinstance(groups, list) or not all(
        isinstance(group, list) and all(isinstance(word, str) for word in group) for group in groups
    ):
        raise DataError(f"{path}: expected a JSON list with the words of every token")
    if len(groups) != size:
        raise DataError(f"{path}: has groups of {len(groups)} tokens, expected those of a vocabulary of {size}")
    return {token: group for token, group in enumerate(groups) if group}

"""Retrieval metrics over a similarity matrix; in a square one, the diagonal holds the matches."""

from collections.abc import Sequence

import numpy as np

RECALLS = (1, 5, 10)


def reference_metrics(similarity: np.ndarray) -> dict[str, float]:
    """Return recall at K and median rank as the MIL-NCE evaluation computes them, ties included.

    Every position of a sorted row whose score equals the match's is one entry, so a row with ties counts more than once
    (antoine77340/MIL-NCE_HowTo100M, metrics.py).

    Args:
      similarity: Scores, `[N, N]`; rows are queries, columns items.

    Returns:
      `R@1`, `R@5` and `R@10` as fractions, `median_rank` from 1, and `entries`, the number of positions counted.

    Raises:
      ValueError: If the matrix is not square, or holds values that are not finite.
    """
    similarity = _square(similarity)
    ranked = -np.sort(-similarity, axis=1)
    positions = np.nonzero(ranked == np.diagonal(similarity)[:, None])[1]
    return _summary(positions) | {"entries": float(len(positions))}


def tie_free_metrics(similarity: np.ndarray) -> dict[str, float]:
    """Return the metrics of `reference_metrics` with one entry per row: a tied match has the middle rank of the tie."""
    similarity = _square(similarity)
    match = np.diagonal(similarity)[:, None]
    better = (similarity > match).sum(1)
    equal = (similarity == match).sum(1) - 1
    return _summary(better + equal / 2)


def ranking_metrics(similarity: np.ndarray, truths: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return recall at K, their mean and the median rank where a query may have several matches; the best one counts.

    Of items with equal scores, the one with the lower index comes first.

    Args:
      similarity: Scores, `[N, M]`; rows are queries, columns items.
      truths: Indices of each query's matches, one or more.

    Returns:
      `R@1`, `R@5`, `R@10` and `mean_recall` as fractions, and `median_rank` from 1.

    Raises:
      ValueError: If a query has no match, the numbers of queries differ, or values are not finite.
    """
    similarity = _finite(np.asarray(similarity))
    if len(truths) != len(similarity) or not all(map(len, truths)):
        raise ValueError(f"retrieval: expected the matches of {len(similarity)} queries, one or more each")
    positions = np.array([_best_position(row, list(matches)) for row, matches in zip(similarity, truths, strict=True)])
    metrics = _summary(positions)
    return metrics | {"mean_recall": float(np.mean([metrics[f"R@{k}"] for k in RECALLS]))}


def _best_position(row: np.ndarray, matches: list[int]) -> int:
    best = row[matches].max()
    first = min(match for match in matches if row[match] == best)
    return int((row > best).sum() + (row[:first] == best).sum())


def _square(similarity: np.ndarray) -> np.ndarray:
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size:
        raise ValueError(f"retrieval: expected a square similarity matrix, found shape {similarity.shape}")
    return _finite(similarity)


def _finite(similarity: np.ndarray) -> np.ndarray:
    if not np.isfinite(similarity).all():
        raise ValueError("retrieval: the similarity matrix holds values that are not finite")
    return similarity


def _summary(positions: np.ndarray) -> dict[str, float]:
    metrics = {f"R@{k}": float(np.mean(positions < k)) for k in RECALLS}
    return metrics | {"median_rank": float(np.median(positions) + 1)}

"""Retrieval metrics over a square similarity matrix whose diagonal holds the matches."""

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


def _square(similarity: np.ndarray) -> np.ndarray:
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size:
        raise ValueError(f"retrieval: expected a square similarity matrix, found shape {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise ValueError("retrieval: the similarity matrix holds values that are not finite")
    return similarity


def _summary(positions: np.ndarray) -> dict[str, float]:
    metrics = {f"R@{k}": float(np.mean(positions < k)) for k in RECALLS}
    return metrics | {"median_rank": float(np.median(positions) + 1)}

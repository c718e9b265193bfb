"""Metrics of DiDeMo, whose queries have several annotators; those who disagree do not count (numpy)."""

from collections.abc import Sequence

import numpy as np

from vlm_jax.metrics.moments import hull_overlap

ANNOTATORS = 3
"""Number of annotators (of mostly four) whose moments count: those that fit a prediction best."""


def metrics(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Return Rank@1, Rank@5 and mIoU as LisaAnne/LocalizingMoments computes them, in percent.

    The rank of a truth is the place of the first prediction that equals it, so predictions have to consist of whole
    segments. A query is a hit at K if the mean of its `ANNOTATORS` best ranks is K or less.

    Args:
      predictions: Predictions of N queries, best first, each `[K, 2 or more]` (start, end), seconds.
      truths: Truths of the queries, each `[M, 2]` (start, end), seconds, one row per annotator.

    Returns:
      `didemo/Rank@1`, `didemo/Rank@5` and `didemo/mIoU`.
    """
    ranks, overlaps = [], []
    for found, truth in zip(predictions, truths, strict=True):
        overlap = hull_overlap(found[:, None, :2], truth[None])  # [K, M]
        exact = np.isclose(overlap, 1.0)
        places = np.where(exact.any(0), exact.argmax(0) + 1.0, np.inf) if len(found) else np.full(len(truth), np.inf)
        ranks.append(np.sort(places)[:ANNOTATORS].mean())
        overlaps.append(np.sort(overlap[0])[-ANNOTATORS:].mean() if len(found) else 0.0)
    return {
        "didemo/Rank@1": 100 * float(np.mean(np.array(ranks) <= 1)),
        "didemo/Rank@5": 100 * float(np.mean(np.array(ranks) <= 5)),
        "didemo/mIoU": 100 * float(np.mean(overlaps)),
    }

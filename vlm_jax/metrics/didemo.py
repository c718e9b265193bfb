"""DiDeMo's own metrics: several annotators, and those who disagree with the others do not count (numpy)."""

from collections.abc import Sequence

import numpy as np

from vlm_jax.metrics.moments import hull_overlap

ANNOTATORS = 3
"""So many of the (mostly four) annotators' moments count, those that fit a prediction best."""


def metrics(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Rank@1, Rank@5 and mIoU of LisaAnne/LocalizingMoments, in percent, under `didemo/`.

    A truth's rank is the place of the first prediction that is just it (predictions have to consist of whole segments
    for that), and a query counts if the mean of its best ranks is K or less.

    Args:
      predictions: N of `[K, 2 or more]`, seconds, best first.
      truths: N of `[M, 2]`, one an annotator.
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

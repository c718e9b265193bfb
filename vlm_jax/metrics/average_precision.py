"""Average precision of ranked detections (numpy, float64)."""

import numpy as np


def average_precision(scores: np.ndarray, hits: np.ndarray, positives: int) -> float:
    """Return the area under the curve of precision, made non-increasing, over recall (PASCAL VOC 2010, all points).

    Among equal scores, a later detection ranks before an earlier one, as in a stable ascending sort that is reversed.

    Args:
      scores: Scores of the detections, `[N]`.
      hits: Whether each detection is a true positive, bool `[N]`.
      positives: Number of objects that could be found.

    Returns:
      A number in [0, 1]; 0 without detections, NaN without objects.
    """
    if not positives:
        return float("nan")
    ranked = np.asarray(hits, bool)[np.argsort(scores, kind="stable")[::-1]]
    found = np.cumsum(ranked)
    precision = found / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[ranked].sum() / positives)

"""Metrics of moment retrieval: recall at K by IoU threshold, mIoU and mAP (numpy, float64).

The predictions of a question are `[K, 2 or more]` (start, end, any further columns), best first. Its truth is `[2]` or,
where several moments are right, `[M, 2]`. Any unit of time will do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MEAN_THRESHOLDS = (0.3, 0.5)
"""IoU thresholds over which the Ego4D challenge averages recall, whichever others are reported."""


def hull_overlap(predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Return the length of the intersection over that of the hull (from the first start to the last end).

    For segments that overlap, this is the IoU.

    Args:
      predictions: Segments, `[..., 2]`.
      truths: Segments, `[..., 2]`, of a shape that broadcasts with `predictions`.

    Returns:
      `[...]`, NaN where the hull has length 0.
    """
    predictions, truths = np.asarray(predictions, np.float64), np.asarray(truths, np.float64)
    last_start = np.maximum(predictions[..., 0], truths[..., 0])
    first_end = np.minimum(predictions[..., 1], truths[..., 1])
    hull = np.maximum(predictions[..., 1], truths[..., 1]) - np.minimum(predictions[..., 0], truths[..., 0])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.maximum(first_end - last_start, 0) / hull


def best_overlaps(predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Return the overlap `[K]` of each prediction with the truth that it fits best; NaN becomes 0."""
    predictions = np.asarray(predictions, np.float64)
    predictions = predictions.reshape(len(predictions), -1 if predictions.size else 2)[:, :2]
    truths = np.asarray(truths, np.float64).reshape(-1, 2)
    return np.nan_to_num(hull_overlap(predictions[:, None], truths[None])).max(1)


def hits(
    overlaps: Sequence[np.ndarray], thresholds: Sequence[float], ks: Sequence[int], *, strict: bool = True
) -> np.ndarray:
    """Return which questions have a prediction among their first K that overlaps enough.

    Args:
      overlaps: Overlaps of the predictions of N questions, best prediction first; there may be fewer than K.
      thresholds: Thresholds of the overlap.
      ks: Numbers of predictions that count, K.
      strict: If true, the overlap must exceed the threshold; else it may equal it.

    Returns:
      bool `[len(thresholds), len(ks), N]`.
    """
    found = np.zeros((len(thresholds), len(ks), len(overlaps)), bool)
    for number, overlap in enumerate(overlaps):
        for row, threshold in enumerate(thresholds):
            enough = overlap > threshold if strict else overlap >= threshold
            found[row, :, number] = [enough[:k].any() for k in ks]
    return found


def recall_table(
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float],
    ks: Sequence[int],
    *,
    strict: bool = True,
) -> np.ndarray:
    """Return recall at K, the share of questions with a hit: `[len(thresholds), len(ks)]`; see `hits`."""
    overlaps = [best_overlaps(*pair) for pair in zip(predictions, truths, strict=True)]
    return hits(overlaps, thresholds, ks, strict=strict).mean(-1)


def mean_top_overlap(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """Return the mIoU: the mean overlap of the first predictions, 0 for a question without any."""
    overlaps = [best_overlaps(*pair) for pair in zip(predictions, truths, strict=True)]
    return float(np.mean([overlap[0] if len(overlap) else 0.0 for overlap in overlaps]))


def average_precisions(
    predictions: np.ndarray, truths: np.ndarray, thresholds: Sequence[float], most: int = 10
) -> np.ndarray:
    """Return the average precision of a question with several right moments (QVHighlights, Lei et al. 2021).

    Predictions are matched in order: each takes the free truth that it overlaps most, if it overlaps it enough. The
    precision at a match is interpolated: the largest precision at it or at any later prediction.

    Args:
      predictions: Predictions, `[K, 2 or more]`, best first.
      truths: Right moments, `[M, 2]`.
      thresholds: Smallest overlaps that count as a match.
      most: Number of predictions that count.

    Returns:
      `[len(thresholds)]`, in [0, 1].
    """
    predictions, truths = np.asarray(predictions, np.float64), np.asarray(truths, np.float64).reshape(-1, 2)
    predictions = predictions.reshape(len(predictions), -1 if predictions.size else 2)[:most, :2]
    overlaps = np.nan_to_num(hull_overlap(predictions[:, None], truths[None]))
    found = np.zeros(len(thresholds))
    for place, threshold in enumerate(thresholds):
        free, right = np.ones(len(truths), bool), np.zeros(len(predictions))
        for number, overlap in enumerate(overlaps):
            best = int(np.where(free, overlap, -1).argmax())
            if free[best] and overlap[best] >= threshold:
                free[best], right[number] = False, 1
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        found[place] = (right * np.maximum.accumulate(precision[::-1])[::-1]).sum() / len(truths)
    return found


def precision_metrics(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Return `mAP@0.5`, `mAP@0.75` and `mAP`, the mean over thresholds 0.5, 0.55, ..., 0.95, in percent."""
    thresholds = np.arange(10, 20) / 20
    pairs = zip(predictions, truths, strict=True)
    table = 100 * np.mean([average_precisions(*pair, thresholds) for pair in pairs], 0)
    return {"mAP@0.5": float(table[0]), "mAP@0.75": float(table[5]), "mAP": float(table.mean())}


def moment_metrics(
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float] = (0.3, 0.5),
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Return recall `R{K}@{threshold}`, its mean `mean_R{K}` over `MEAN_THRESHOLDS`, and `mIoU`, in percent."""
    table = 100 * recall_table(predictions, truths, thresholds, ks)
    means = 100 * recall_table(predictions, truths, MEAN_THRESHOLDS, ks).mean(0)
    metrics = {}
    for column, k in enumerate(ks):
        metrics |= {f"R{k}@{threshold}": float(table[row, column]) for row, threshold in enumerate(thresholds)}
    metrics |= {f"mean_R{k}": float(mean) for k, mean in zip(ks, means, strict=True)}
    return metrics | {"mIoU": 100 * mean_top_overlap(predictions, truths)}


def ego4d_pairs(
    results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return predictions and truths, seconds, of the queries in an Ego4D result file, in its order.

    As in the challenge's script, the file decides what is scored: a query that it lacks does not count, and one that it
    holds twice counts twice.

    Args:
      results: List `results` of a result file.
      annotations: Annotations of the challenge (`nlq_val.json`).

    Raises:
      ValueError: If the annotations lack the query of a result; it names the first one.
    """
    queries = {
        (clip["clip_uid"], annotation["annotation_uid"]): annotation["language_queries"]
        for video in annotations["videos"]
        for clip in video["clips"]
        for annotation in clip["annotations"]
    }
    predictions, truths = [], []
    for result in results:
        name = (result["clip_uid"], result["annotation_uid"])
        number = result["query_idx"]
        if name not in queries or not 0 <= number < len(queries[name]):
            raise ValueError(f"results: clip {name[0]}, annotation {name[1]} has no query {number} in the annotations")
        query = queries[name][number]
        predictions.append(np.asarray(result["predicted_times"], np.float64))
        truths.append(np.array([query["clip_start_sec"], query["clip_end_sec"]], np.float64))
    return predictions, truths

"""Scoring moments: recall among the first K at thresholds of overlap (numpy, float64).

A question's predictions are `[K, 2 or more]` start, end and whatever follows, best first; its truths `[2]` or, where
several are right, `[M, 2]`. The unit of time does not matter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def hull_overlap(predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Length of the intersection over that from the first start to the last end.

    Args:
      predictions: `[..., 2]`.
      truths: `[..., 2]`, of a shape that fits.

    Returns:
      `[...]`, NaN where both are one and the same instant.
    """
    predictions, truths = np.asarray(predictions, np.float64), np.asarray(truths, np.float64)
    last_start = np.maximum(predictions[..., 0], truths[..., 0])
    first_end = np.minimum(predictions[..., 1], truths[..., 1])
    hull = np.maximum(predictions[..., 1], truths[..., 1]) - np.minimum(predictions[..., 0], truths[..., 0])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.maximum(first_end - last_start, 0) / hull


def best_overlaps(predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Overlap `[K]` of each prediction with the truth that it fits best; 0 where there is none (NaN)."""
    predictions = np.asarray(predictions, np.float64)
    predictions = predictions.reshape(len(predictions), -1 if predictions.size else 2)[:, :2]
    truths = np.asarray(truths, np.float64).reshape(-1, 2)
    return np.nan_to_num(hull_overlap(predictions[:, None], truths[None])).max(1)


def hits(
    overlaps: Sequence[np.ndarray], thresholds: Sequence[float], ks: Sequence[int], *, strict: bool = True
) -> np.ndarray:
    """Whether any of the first K predictions overlaps enough: bool `[len(thresholds), len(ks), N]`.

    Args:
      overlaps: For each of N questions `[any]`, best prediction first; fewer than K are judged as they are.
      thresholds: Of overlap.
      ks: K.
      strict: Whether the overlap must be more than the threshold, not just as much.
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
    """Share of questions with a hit, `[len(thresholds), len(ks)]`; see `hits`."""
    overlaps = [best_overlaps(*pair) for pair in zip(predictions, truths, strict=True)]
    return hits(overlaps, thresholds, ks, strict=strict).mean(-1)


def mean_top_overlap(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """mIoU: the mean overlap of first predictions, 0 for a question without any."""
    overlaps = [best_overlaps(*pair) for pair in zip(predictions, truths, strict=True)]
    return float(np.mean([overlap[0] if len(overlap) else 0.0 for overlap in overlaps]))


def moment_metrics(
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    thresholds: Sequence[float] = (0.3, 0.5),
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """`R1@0.3` and so on, `mean_R1` and so on over the thresholds, and `mIoU`, in percent."""
    table = 100 * recall_table(predictions, truths, thresholds, ks)
    metrics = {}
    for column, k in enumerate(ks):
        metrics |= {f"R{k}@{threshold}": float(table[row, column]) for row, threshold in enumerate(thresholds)}
    metrics |= {f"mean_R{k}": float(mean) for k, mean in zip(ks, table.mean(0), strict=True)}
    return metrics | {"mIoU": 100 * mean_top_overlap(predictions, truths)}


def ego4d_pairs(
    results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions and truths of the queries that a result file submits, in its order.

    As in the challenge's script, the file decides what is judged: queries that it lacks do not count, and one that it
    holds twice counts twice.

    Args:
      results: The `results` of a result file.
      annotations: The challenge's annotations (`nlq_val.json`).

    Raises:
      ValueError: naming the first result whose query the annotations have not.
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

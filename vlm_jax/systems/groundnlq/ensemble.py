"""Ensemble of the result files of several models (houzhijian/GroundNLQ, `ensemble.py`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.metrics.moments import hull_overlap

SHARE = 4
"""Number of predictions per query that each file contributes."""

KEPT = 5
"""Number of predictions per query in the result."""

DISTANCE = 2.0
"""Distance between the middles of first predictions from which on they do not agree, seconds."""

OVERLAP = 0.5
"""Largest overlap (intersection over hull) of a prediction with a better one; beyond it, the prediction is dropped."""


def ensemble(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge result files: the first predictions of each file, and fusions of first predictions that agree.

    Args:
      files: Result files of the same queries in the same order.

    Returns:
      The first file with `predicted_times` replaced by `KEPT` pairs of start and end, seconds.

    Raises:
      ValueError: If files differ in their queries, or a query has no prediction; it names the first such query.
    """
    check_same_queries(files)
    results = []
    for entries in zip(*(file["results"] for file in files), strict=True):
        predictions = [entry["predicted_times"] for entry in entries]
        if not all(predictions):
            raise ValueError(
                f"ensemble: file {[bool(times) for times in predictions].index(False) + 1} has no "
                f"predictions for {_name(entries[0])}"
            )
        results.append({**entries[0], "predicted_times": merge(predictions)})
    return {**files[0], "results": results}


def merge(predictions: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Return `KEPT` pairs of start and end for one query, from the rows of start, end and score in each file."""
    fused = fuse_first([times[0] for times in predictions])
    # A fused prediction is ranked by its mean score; its summed score only ordered the fused predictions.
    pool = np.array([*(row[:3] for times in predictions for row in times[:SHARE]), *(row[:3] for row in fused)])
    # Of equal scores the first of the pool wins: files in their order, then the fused ones.
    pool = pool[np.argsort(-pool[:, 2], kind="stable")]
    kept = []
    while len(pool) and len(kept) < KEPT:
        best, pool = pool[0], pool[1:]
        kept.append(best[:2].tolist())
        pool = pool[~(hull_overlap(pool[:, :2], best[:2]) > OVERLAP)]
    return kept + [kept[-1]] * (KEPT - len(kept))


def fuse_first(firsts: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the means of first predictions that agree, by falling summed score.

    Predictions are sorted by their middles, and neighbours nearer than `DISTANCE` form a group. Of equal middles only
    the last one counts. A group yields the mean of its best member and its median member.

    Args:
      firsts: Start, end and score of the first prediction of every file; start and end in seconds.

    Returns:
      One row per group: start, end, mean score, 0 and the summed score.
    """
    by_middle = {(first[0] + first[1]) / 2: first for first in firsts}
    groups: list[list[Sequence[float]]] = []
    before = -np.inf
    for middle in sorted(by_middle):
        if middle - before >= DISTANCE:
            groups.append([])
        groups[-1].append(by_middle[middle])
        before = middle
    fused = []
    for group in groups:
        best = max(group, key=lambda member: member[2])
        upper, lower = group[len(group) // 2], group[(len(group) - 1) // 2]
        central = upper if upper[2] > lower[2] else lower
        means = [(a + b) / 2 for a, b in zip(best[:3], central[:3], strict=True)]
        fused.append([*means, 0, sum(member[2] for member in group)])
    return sorted(fused, key=lambda row: row[4], reverse=True)


def check_same_queries(files: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if files list different queries, or the same ones in another order."""
    first = [_name(entry) for entry in files[0]["results"]]
    for number, file in enumerate(files[1:], start=2):
        other = [_name(entry) for entry in file["results"]]
        for place, (ours, theirs) in enumerate(zip(first, other, strict=False)):
            if ours != theirs:
                raise ValueError(f"ensemble: result {place} is {ours} in file 1 and {theirs} in file {number}")
        if len(first) != len(other):
            raise ValueError(f"ensemble: file 1 has {len(first)} results and file {number} has {len(other)}")


def _name(entry: Mapping[str, Any]) -> str:
    return f"query {entry['query_idx']} of annotation {entry['annotation_uid']}, clip {entry['clip_uid']}"

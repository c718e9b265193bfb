"""Frame mAP of AVA at an IoU of 0.5 (numpy): as mmaction2 computes it, and as AVA's own tool does.

Sources: open-mmlab/mmaction2, mmaction/evaluation/functional/ava_utils.py and ava_evaluation/;
activitynet/ActivityNet, Evaluation/get_ava_performance.py. docs/lfb.md lists where the two differ.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vlm_jax.metrics.average_precision import average_precision
from vlm_jax.systems.lfb.annotations import Key
from vlm_jax.systems.lfb.detections import Table

IOU = 0.5
GROUPS = {"person_movement": (1, 14), "object_manipulation": (15, 63), "person_interaction": (64, math.inf)}
"""First and last action of the three groups of AVA."""
MODES = ("reference", "official")


class Ranking(NamedTuple):
    """Detections of one action, in the order in which the average precision ranks equal scores (last first).

    Attributes:
      scores: Scores, float32 `[N]`.
      hits: Whether each detection is a true positive, bool `[N]`.
      positives: Number of annotated boxes of the action.
    """

    scores: np.ndarray
    hits: np.ndarray
    positives: int


def ava_map(
    ground_truth: Table,
    detections: Table,
    excluded: Collection[Key],
    actions: Mapping[int, str],
    mode: str = "reference",
    *,
    ignore_empty_frames: bool = True,
) -> dict[str, float]:
    """Return frame mAP in percent: `mAP`, `mAP/GROUP` of the three groups, and `AP/ID NAME` of every action.

    `reference` is mmaction2's evaluation: the mean runs over actions with a detection on an evaluated keyframe,
    annotations on excluded keyframes count as objects to be found, and detections on keyframes without annotations do
    not count. `official` is AVA's: the mean runs over annotated actions, excluded keyframes are left out altogether,
    and detections on keyframes without annotations are false positives.

    Args:
      ground_truth: Annotations, from `detections.read_csv`.
      detections: Detections, from `detections.read_csv` or `to_table`.
      excluded: Keyframes that are not evaluated.
      actions: Names by action; rows of other actions are left out. AVA evaluates 60 of its 80 actions.
      mode: 'reference' or 'official'.
      ignore_empty_frames: If false, detections on keyframes without annotations are false positives in either mode.

    Returns:
      Metrics by name; NaN for an action without annotations and for a group without an action that counts.
    """
    rankings = rank(ground_truth, detections, excluded, actions, mode, ignore_empty_frames=ignore_empty_frames)
    precisions = {action: 100 * average_precision(*ranking) for action, ranking in rankings.items()}
    metrics = {"mAP": _mean(precisions.values())}
    for group, (first, last) in GROUPS.items():
        metrics[f"mAP/{group}"] = _mean(value for action, value in precisions.items() if first <= action <= last)
    return metrics | {f"AP/{action} {actions[action]}": value for action, value in precisions.items()}


def rank(
    ground_truth: Table,
    detections: Table,
    excluded: Collection[Key],
    actions: Collection[int],
    mode: str = "reference",
    *,
    ignore_empty_frames: bool = True,
) -> dict[int, Ranking]:
    """Return the detections of every action that enters the mean, by action in ascending order; see `ava_map`."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    official, excluded = mode == "official", set(excluded)
    truth, found = (_keep(table, np.isin(table.actions, list(actions))) for table in (ground_truth, detections))
    if official:
        counted = np.array([keyframe not in excluded for keyframe in truth.keyframes], bool)
        truth = _keep(truth, counted[truth.frames])
    listed = (found if official or not ignore_empty_frames else truth).keyframes
    evaluated = [keyframe for keyframe in listed if keyframe not in excluded]
    truth_images, found_images = (_images(table, evaluated) for table in (truth, found))
    rankings = {}
    for action in sorted(actions):
        ours = _columns(found, found_images, action)
        positives = int((truth.actions == action).sum())
        if len(ours.images) or (official and positives):
            rankings[action] = Ranking(*_match(ours, _columns(truth, truth_images, action)), positives)
    return rankings


class _Columns(NamedTuple):
    """Rows of one action, by image and then by descending score.

    Attributes:
      images: Number of the evaluated keyframe, int64 `[N]`.
      boxes: x1, y1, x2, y2, float32 `[N, 4]`.
      scores: Scores, float64 `[N]`.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def _keep(table: Table, kept: np.ndarray) -> Table:
    """Return some rows of a table; its keyframes are again in the order of their first rows."""
    frames = table.frames[kept]
    present, firsts, numbers = np.unique(frames, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    keyframes = [table.keyframes[number] for number in present[order]]
    return Table(keyframes, places[numbers], *(column[kept] for column in table[2:]))


def _images(table: Table, evaluated: list[Key]) -> np.ndarray:
    """Return the number of each row's keyframe among the evaluated ones, -1 if it is not evaluated."""
    places = {keyframe: number for number, keyframe in enumerate(evaluated)}
    return np.array([places.get(keyframe, -1) for keyframe in table.keyframes], np.int64)[table.frames]


def _columns(table: Table, images: np.ndarray, action: int) -> _Columns:
    rows = np.flatnonzero((table.actions == action) & (images >= 0))
    rows = rows[np.lexsort((-table.scores[rows], images[rows]))]
    return _Columns(images[rows], table.boxes[rows], table.scores[rows])


def _match(found: _Columns, truth: _Columns) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, float32 `[N]`, and whether each detection of an action is a true positive, bool `[N]`.

    By descending score, a detection claims the annotated box that it overlaps most, if it overlaps it enough and no
    other has claimed it; it has no second choice.
    """
    hits = np.zeros(len(found.images), bool)
    firsts = np.searchsorted(truth.images, found.images, "left")
    counts = np.searchsorted(truth.images, found.images, "right") - firsts
    rows = np.flatnonzero(counts)
    if len(rows):
        # Pairs of a detection and an annotated box of its image.
        firsts, counts = firsts[rows], counts[rows]
        starts = np.cumsum(counts) - counts
        boxes = np.repeat(firsts - starts, counts) + np.arange(counts.sum())
        overlaps = _overlaps(found.boxes[np.repeat(rows, counts)], truth.boxes[boxes])
        largest = np.maximum.reduceat(overlaps, starts)
        detections = np.repeat(np.arange(len(rows)), counts)
        best = np.flatnonzero(overlaps == largest[detections])
        best = best[np.unique(detections[best], return_index=True)[1]]
        enough = largest >= IOU
        claiming = rows[enough]
        hits[claiming[np.unique(boxes[best][enough], return_index=True)[1]]] = True
    return found.scores.astype(np.float32), hits


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of pairs of boxes, float32 `[N]`; 0 where both have no area."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    intersection = np.maximum(sides, 0).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(intersection / (areas[0] + areas[1] - intersection))


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are numbers; NaN if there is none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan

"""Boxes that training learns from: annotated people, and proposals that match one of them.

Reference: open-mmlab/mmdetection, mmdet/models/task_modules/assigners/max_iou_assigner.py, and open-mmlab/mmaction2,
mmaction/models/task_modules/assigners/max_iou_assigner_ava.py. Boxes are x1, y1, x2, y2, float32 `[N, 4]`. Negatives
of the reference have no labels and therefore no part in the loss; they are left out.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

_LEAST_UNION = np.float32(1e-6)


@dataclasses.dataclass(frozen=True)
class Matching:
    """Settings for matching proposals with annotated boxes.

    Attributes:
      positive_iou: Smallest IoU of a proposal with its best annotated box at which it takes this box's labels.
      negative_iou: IoU below which a proposal is negative. Proposals between the two are ignored.
      minimal_iou: Smallest IoU of an annotated box's best proposal at which that proposal is assigned to it.
      max_boxes: Number of boxes of a clip; of more, a random choice is taken.
    """

    positive_iou: float = 0.9
    negative_iou: float = 0.9
    minimal_iou: float = 0.9
    max_boxes: int = 32


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of every pair of boxes, float32 `[N, M]`, with areas in the unit of the boxes."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = (np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    union = _area(first)[:, None] + _area(second)[None] - shared
    return shared / np.maximum(union, _LEAST_UNION)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def assign(truth: np.ndarray, proposals: np.ndarray, matching: Matching) -> tuple[np.ndarray, np.ndarray]:
    """Assign proposals `[N, 4]` to annotated boxes `[M, 4]`.

    Returns:
      For each proposal 1 + the number of its annotated box, 0 for a negative, -1 if it is ignored, int64 `[N]`; and its
      largest IoU, float32 `[N]`.
    """
    if not len(truth) or not len(proposals):
        return np.zeros(len(proposals), np.int64), np.zeros(len(proposals), np.float32)
    overlaps = box_iou(truth, proposals)
    best = overlaps.max(0)
    assigned = np.where(best < np.float32(matching.negative_iou), 0, -1)
    assigned = np.where(best >= np.float32(matching.positive_iou), 1 + overlaps.argmax(0), assigned)
    # Every annotated box also takes its best proposals, even if another box is nearer to them.
    for number, row in enumerate(overlaps):
        if row.max() >= np.float32(matching.minimal_iou):
            assigned[row == row.max()] = 1 + number
    return assigned, best


def sample(
    assigned: np.ndarray, num_truth: int, max_boxes: int, permutation: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Return the positives among annotated boxes and proposals, in this order: ascending indices, int64 `[K]`.

    Args:
      assigned: Assignment of the proposals, from `assign`.
      num_truth: Number of annotated boxes; each is positive.
      max_boxes: Largest number of positives.
      permutation: Function from a number n to a random permutation of 0 to n - 1.
    """
    found = np.concatenate([np.arange(num_truth), num_truth + np.flatnonzero(assigned > 0)])
    return found if len(found) <= max_boxes else np.sort(found[permutation(len(found))[:max_boxes]])


def positives(
    truth: np.ndarray, labels: np.ndarray, proposals: np.ndarray, matching: Matching, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of a clip that training learns from, float32 `[K, 4]`, and their labels, bool `[K, A]`.

    Args:
      truth: Annotated boxes, float32 `[M, 4]`.
      labels: Actions of each annotated box by column, bool `[M, A]`.
      proposals: Proposals, float32 `[N, 4]`.
      matching: Settings of matching.
      rng: Random numbers, used only if there are more positives than `matching.max_boxes`.
    """
    assigned, _ = assign(truth, proposals, matching)
    chosen = sample(assigned, len(truth), matching.max_boxes, rng.permutation)
    owner = np.concatenate([np.arange(len(truth)), assigned - 1])[chosen]
    return np.concatenate([truth, proposals])[chosen], labels[owner]

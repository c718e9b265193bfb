"""Label assignment: class and offset targets of the points of a pyramid (numpy, float64).

Reference: houzhijian/GroundNLQ, `libs/modeling/loc_generators.py` and `meta_archs.py`. It compares in float64, and ties
depend on that, so targets are computed on the host.
"""

from collections.abc import Sequence

import numpy as np

RANGES = ((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 128), (64, 10000))
"""Ranges of the levels for the distance of a point to the farther end of its segment, in positions; they overlap."""

TIE = 1e-3
"""Tolerance of ties: segments longer than the shortest one by no more than this count as equal, in positions."""


def points(length: int, ranges: Sequence[tuple[float, float]] = RANGES, scale: int = 2) -> np.ndarray:
    """Return the points of all levels, level after level.

    Args:
      length: Number of positions of the finest level.
      ranges: Regression range of every level, in positions.
      scale: Ratio of the strides of consecutive levels.

    Returns:
      Place, lower and upper end of the range, and stride of P points, in positions, float64 `[P, 4]`.

    Raises:
      ValueError: If the last stride does not divide the length.
    """
    last = scale ** (len(ranges) - 1)
    if length % last:
        raise ValueError(f"points: {length} positions are not a multiple of the last level's stride {last}")
    tables = []
    for level, (low, high) in enumerate(ranges):
        stride = scale**level
        places = np.arange(0, length, stride, dtype=np.float64)
        tables.append(np.stack(np.broadcast_arrays(places, low, high, stride), 1))
    return np.concatenate(tables)


def assign(
    table: np.ndarray,
    segments: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    classes: int = 1,
    radius: float = 1.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Return class and offset targets of every point for one item.

    A point is assigned to a segment if it lies within `radius` strides of the segment's middle and inside the segment,
    and if the distance to the farther end is in the point's range. Of several segments it takes the shortest, of equal
    ones the first. Classes of equal segments are all set.

    Args:
      table: Points from `points`, `[P, 4]`.
      segments: Start and end of M segments, in positions, `[M, 2]`; M may be 0.
      labels: Class of each segment, `[M]`; None for class 0.
      classes: Number of classes, N.
      radius: Center sampling radius in strides; 0 for the whole segment.

    Returns:
      Class targets 0 and 1, float32 `[P, N]`, and distances to start and end in strides of the point, float64 `[P, 2]`,
      0 where no segment is assigned.
    """
    segments = np.asarray(segments, np.float64).reshape(-1, 2)
    labels = np.zeros(len(segments), int) if labels is None else np.asarray(labels)
    class_targets = np.zeros((len(table), classes), np.float32)
    offset_targets = np.zeros((len(table), 2))
    if not len(segments):
        return class_targets, offset_targets
    place, low, high, stride = (column[:, None] for column in np.asarray(table, np.float64).T)
    start, end = segments.T
    left, right = place - start, end - place
    if radius:
        middle = (start + end) / 2
        inside = place - np.maximum(middle - stride * radius, start) > 0
        inside &= np.minimum(middle + stride * radius, end) - place > 0
    else:
        inside = (left > 0) & (right > 0)
    farther = np.maximum(left, right)
    lengths = np.where(inside & (low <= farther) & (farther <= high), end - start, np.inf)
    first = lengths.argmin(1)
    shortest = lengths.min(1)
    taken = np.isfinite(shortest)
    equal = (lengths <= shortest[:, None] + TIE) & np.isfinite(lengths)
    for number in range(classes):
        class_targets[:, number] = equal[:, labels == number].any(1)
    chosen = np.stack([left, right], -1)[np.arange(len(table)), first] / stride
    offset_targets[taken] = chosen[taken]
    return class_targets, offset_targets

"""Which points of a pyramid answer for a segment, and how far it reaches from them (numpy, float64).

Rules of houzhijian/GroundNLQ, `libs/modeling/loc_generators.py` and `meta_archs.py`. The reference compares in float64,
and which of equals wins depends on it, so this is done on the host.
"""

from collections.abc import Sequence

import numpy as np

RANGES = ((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 128), (64, 10000))
"""What every level answers for: distances to the farther end, in positions. They overlap on purpose."""

TIE = 1e-3
"""Segments that are longer than the shortest one by no more than this count as equals."""


def points(length: int, ranges: Sequence[tuple[float, float]] = RANGES, scale: int = 2) -> np.ndarray:
    """The points of all levels, level after level: float64 `[P, 4]` of place, low, high and stride, in positions.

    Args:
      length: Positions of the finest level.
      ranges: One for every level.
      scale: Stride of a level over that of the one before.

    Raises:
      ValueError: where the last stride does not divide the length.
    """
    last = scale ** (len(ranges) - 1)
    if length % last:
        raise ValueError(f"points: {length} positions do not divide by the last level's stride {last}")
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
    """Targets of every point for one item.

    A point answers for a segment that it lies in, near the middle, and whose farther end is within the point's range;
    of several it takes the shortest, and the first of equals. Equals add their classes.

    Args:
      table: From `points`, `[P, 4]`.
      segments: `[M, 2]` start and end, in positions; M may be 0.
      labels: `[M]` class of each; None: all 0.
      classes: N.
      radius: How far from the middle of a segment, in strides; 0: anywhere within it.

    Returns:
      Classes, float32 `[P, N]` of 0 and 1, and distances to start and end in strides of the point, float64 `[P, 2]`,
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

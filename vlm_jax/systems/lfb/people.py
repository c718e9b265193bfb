"""Boxes of people in a frame, found by OpenCV's people detector, and what a prediction says about a person.

Boxes are fractions of the frame's width and height, x1, y1, x2, y2, with a score in [0, 1].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vlm_jax.errors import DataError, missing_package


class Action(NamedTuple):
    """Action of a person: its name, its id in the data, and its probability."""

    name: str
    id: int
    score: float


class Detection(NamedTuple):
    """Person at one second of a film.

    Attributes:
      second: Time from the film's beginning, seconds.
      box: x1, y1, x2, y2 as fractions of the frame's width and height.
      actions: Actions, best first.
      score: Score of the box, in [0, 1].
      found_by: Origin of the box: 'opencv', 'given', or 'frame' for the whole frame.
    """

    second: int
    box: tuple[float, float, float, float]
    actions: list[Action]
    score: float = 1.0
    found_by: str = "given"


WHOLE_FRAME = np.array([[0, 0, 1, 1, 1]], np.float32)
"""Box of a frame without people, as mmaction2 has it for keyframes without proposals (datasets/ava_dataset.py)."""

MOST_PEOPLE = 32
"""Largest number of people per frame."""

# Shorter side at which OpenCV's detector works, pixels; it finds people of at least a third of this height.
SIDE = 320
# Border around the frame, as a fraction of the shorter side: the detector wants some background around a person.
BORDER = 0.1
# Share of its window that a person fills, in width and height.
FILLED = np.array((0.5, 0.85))
# Smallest margin of its support vector machine, and largest share of a box inside a better one. With these numbers all
# 17 people of chaplin.mp4 are found, one box each (data_prep/clips).
SMALLEST_MARGIN = 0.8
LARGEST_OVERLAP = 0.6


def people_detector(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the detector of this name: a function from a frame, uint8 `[H, W, 3]` RGB, to boxes float32 `[N, 5]`.

    'opencv' is the pedestrian detector of the OpenCV package. It is weak: it finds people who stand or walk and are
    seen from head to foot. 'frame' returns the whole frame.

    Raises:
      DataError: If there is no such detector.
      MissingPackageError: If OpenCV is not installed.
    """
    if name == "frame":
        return lambda frame: WHOLE_FRAME
    if name != "opencv":
        raise DataError(f"detector: {name!r} is not one of opencv, frame")
    try:
        import cv2
    except ImportError as error:
        raise missing_package(error) from None
    machine = cv2.HOGDescriptor()
    machine.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())

    def find(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        scale, border = SIDE / min(height, width), round(BORDER * SIDE)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        large = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
        large = cv2.copyMakeBorder(large, border, border, border, border, cv2.BORDER_REPLICATE)
        windows, margins = machine.detectMultiScale(
            large, winStride=(8, 8), padding=(8, 8), scale=1.05, groupThreshold=0
        )
        if not len(windows):
            return np.zeros((0, 5), np.float32)
        corners = np.asarray(windows, np.float64)
        centres = (corners[:, :2] + corners[:, 2:] / 2 - border) / size
        halves = corners[:, 2:] * FILLED / 2 / size
        boxes = np.clip(np.concatenate([centres - halves, centres + halves], axis=1), 0, 1)
        return best_boxes(boxes, np.ravel(margins))

    return find


def best_boxes(boxes: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Return one box per person, float32 `[N, 5]`, best first, from overlapping windows.

    A box that lies in a better one, or around it, is a part of the same person or a group. Scores are
    1 / (1 + exp(-margin)).

    Args:
      boxes: Boxes of all windows, `[M, 4]`.
      margins: Margins of the support vector machine, `[M]`.
    """
    kept: list[np.ndarray] = []
    for index in np.argsort(-margins, kind="stable"):
        box = boxes[index]
        if margins[index] < SMALLEST_MARGIN or len(kept) == MOST_PEOPLE:
            break
        if (box[2:] > box[:2]).all() and all(_overlap(box, other) < LARGEST_OVERLAP for other in kept):
            kept.append(np.append(box, 1 / (1 + math.exp(-margins[index]))))
    return np.array(kept, np.float32).reshape(-1, 5)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the area of the intersection of two boxes as a fraction of the smaller box."""
    sides = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    areas = [np.prod(box[2:4] - box[:2]) for box in (one, other)]
    return float(np.prod(np.maximum(sides, 0)) / min(areas))

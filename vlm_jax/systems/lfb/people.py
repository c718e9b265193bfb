"""Boxes of people in a film: found by OpenCV's people detector, the whole frame, or read from a csv file.

Boxes are fractions of the frame's width and height, x1, y1, x2, y2, with a score in [0, 1].
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
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


Boxes = Mapping[int, np.ndarray]
"""Boxes with scores, float32 `[N, 5]`, by second of the film."""

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

# Columns of a csv file without a header, and other names of some.
COLUMNS = ("video", "second", "x1", "y1", "x2", "y2", "score")
ALIASES = {"video_id": "video", "timestamp": "second"}
# Columns of csv files in AVA's form: two of them follow the box, and neither is the person's score.
AVA_COLUMNS = 8
# Detectors may return boxes that are slightly larger than the frame; larger numbers are pixels.
TOLERANCE = 0.1


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


def read_boxes(path: str | Path) -> dict[str, Boxes]:
    """Return the boxes of a csv file by video and second.

    Columns are video, second, x1, y1, x2, y2 and, optionally, score; a header is optional. Files in AVA's form (two
    columns after the box) are accepted, too: equal boxes of a second are one person with score 1.

    Raises:
      DataError: If the file or one of its rows cannot be used, or its boxes are in pixels.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    found: dict[str, dict[int, dict[tuple[float, ...], float]]] = {}
    for place, row in _rows(path, text):
        people = found.setdefault(row["video"], {}).setdefault(_second(place, row["second"]), {})
        if not any(row.get(name, "").strip() for name in COLUMNS[2:6]):
            continue  # AVA lists keyframes without people in this way
        box = _box(place, row)
        people[box] = max(people.get(box, 0.0), _number(place, "score", row.get("score") or "1"))
    if not found:
        raise DataError(f"{path}: no boxes; expected rows of {', '.join(COLUMNS[:6])}[, score]")
    return {
        video: {
            second: np.array([(*box, score) for box, score in people.items()], np.float32).reshape(-1, 5)
            for second, people in sorted(seconds.items())
        }
        for video, seconds in found.items()
    }


def boxes_of(path: str | Path, video: str) -> Boxes:
    """Return the boxes of one video, whose name in the csv file may have the ending of a video file.

    Raises:
      DataError: as `read_boxes`, or if the file has no such video.
    """
    found = read_boxes(path)
    for name in (video, *(name for name in found if Path(name).stem == video)):
        if name in found:
            return found[name]
    known = ", ".join(list(found)[:3])
    raise DataError(f"{path}: no boxes of the video {video}; it has {known}{', ...' if len(found) > 3 else ''}")


def _rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a csv file, each with its place for messages, by the names of `COLUMNS`."""
    rows = [(reader.line_num, row) for reader in [csv.reader(io.StringIO(text))] for row in reader if row]
    columns: Sequence[str] = ()
    if rows and not _is_number(rows[0][1][1] if len(rows[0][1]) > 1 else ""):
        names = [name.strip().lower() for name in rows.pop(0)[1]]
        columns = [ALIASES.get(name, name) for name in names]
        if lacking := [name for name in COLUMNS[:6] if name not in columns]:
            raise DataError(f"{path}: no column {', '.join(lacking)}; expected {', '.join(COLUMNS[:6])}[, score]")
    for line, row in rows:
        place = f"{path}, line {line}"
        if not columns and len(row) not in (2, 6, 7, AVA_COLUMNS):
            raise DataError(f"{place}: {len(row)} columns, expected {', '.join(COLUMNS[:6])}[, score]")
        if columns and len(row) != len(columns):
            raise DataError(f"{place}: {len(row)} columns, expected {len(columns)} as in the header")
        names = columns or COLUMNS[: 6 if len(row) == AVA_COLUMNS else len(row)]
        yield place, dict(zip(names, row, strict=False))


def _second(place: str, text: str) -> int:
    value = _number(place, "second", text)
    if value < 0 or value != int(value):
        raise DataError(f"{place}: second is {text}, expected a whole number of seconds from the film's beginning")
    return int(value)


def _box(place: str, row: Mapping[str, str]) -> tuple[float, ...]:
    corners = [_number(place, name, row[name]) for name in COLUMNS[2:6]]
    for name, value in zip(COLUMNS[2:6], corners, strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            raise DataError(
                f"{place}: {name} is {value:g}, expected a fraction of the frame's width or height in [0, 1]; divide "
                "pixels by the size of the frame"
            )
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in corners)
    if x1 >= x2 or y1 >= y2:
        raise DataError(f"{place}: the box {corners} is empty, expected x1 < x2 and y1 < y2")
    return x1, y1, x2, y2


def _number(place: str, name: str, text: str) -> float:
    if not _is_number(text):
        raise DataError(f"{place}: {name} is {text!r}, expected a number")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False

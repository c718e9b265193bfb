"""Boxes of people in csv files, such as a detector's (numpy only)."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm_jax.errors import DataError

Boxes = Mapping[int, np.ndarray]
"""Boxes x1, y1, x2, y2 as fractions of the frame's width and height, and scores, `[N, 5]`, by second of the film."""

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg")
"""Endings of video files."""

# Columns of a csv file without a header, and other names of some.
COLUMNS = ("video", "second", "x1", "y1", "x2", "y2", "score")
ALIASES = {"video_id": "video", "timestamp": "second"}
# Columns of csv files in AVA's form: two of them follow the box, and neither is the person's score.
AVA_COLUMNS = 8
# Detectors may return boxes that are slightly larger than the frame; larger numbers are pixels.
TOLERANCE = 0.1


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
            second: np.array([(*box, score) for box, score in people.items()], np.float64).reshape(-1, 5)
            for second, people in sorted(seconds.items())
        }
        for video, seconds in found.items()
    }


def without_ending(video: str) -> str:
    """Return the name of a video without the ending of its file."""
    return video[: -len(Path(video).suffix)] if Path(video).suffix.lower() in ENDINGS else video


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

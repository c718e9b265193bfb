"""Detections as AVA csv files and as JSON, and tables of annotations or detections read from such files (numpy only).

A row of an AVA csv is an action of a box in a keyframe: video, second, x1, y1, x2, y2, action, and a score or the
number of a person; coordinates are relative to width and height. Source: open-mmlab/mmaction2,
mmaction/structures/bbox/bbox_target.py (`bbox2result`) and mmaction/evaluation/functional/ava_utils.py.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.errors import DataError
from vlm_jax.files import replacing
from vlm_jax.systems.lfb.annotations import Key

_CHUNK = 1 << 17  # lines of a csv that are parsed at a time
_ITEMS = 1 << 10  # keyframes whose lines are written at a time


class Detections(NamedTuple):
    """Scores of all actions for boxes in keyframes, packed: the boxes of keyframe 0, then those of keyframe 1, ...

    Attributes:
      videos: Video of every keyframe, N names.
      seconds: Second of every keyframe, int `[N]`.
      counts: Number of boxes of every keyframe, int `[N]`.
      boxes: x1, y1, x2, y2, relative to width and height, float32 `[M, 4]`.
      scores: Scores of all actions, float32 `[M, A]`; column 0 is not used.
    """

    videos: Sequence[str]
    seconds: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, int, np.ndarray, np.ndarray]]) -> "Detections":
        """Pack keyframes, each with its video, second, boxes `[n, 4]` and scores `[n, A]`; there is at least one."""
        videos, seconds, boxes, scores = zip(*rows, strict=True)
        counts = np.array([len(each) for each in boxes], np.int64)
        return cls(videos, np.array(seconds, np.int64), counts, np.concatenate(boxes), np.concatenate(scores))


class Table(NamedTuple):
    """Columns of an AVA csv.

    Attributes:
      keyframes: Keyframes in the order of their first rows.
      frames: Position of each row's keyframe in `keyframes`, int64 `[R]`.
      boxes: x1, y1, x2, y2, relative to width and height, float32 `[R, 4]`.
      actions: Action of each row, int64 `[R]`.
      scores: Last column, float64 `[R]`: a score, or the number of a person; 1 if the file has no such column.
    """

    keyframes: list[Key]
    frames: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray
    scores: np.ndarray


def write_csv(
    path: str | Path, detections: Detections, threshold: float = 0.0, action_ids: Sequence[int] | None = None
) -> None:
    """Write detections as a csv of AVA's form, with four decimals.

    Args:
      path: File to write.
      detections: Boxes and scores.
      threshold: Score that an action must exceed. If it is negative, every box gets only its best action.
      action_ids: Action of each column, A numbers, for a model of a subset of the actions; None for its own number.
    """
    with replacing(Path(path)) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(csv_lines(detections, threshold, action_ids))


def csv_lines(detections: Detections, threshold: float = 0.0, action_ids: Sequence[int] | None = None) -> Iterator[str]:
    """Yield the lines of `write_csv`: keyframes in order, within one the actions, and for an action the boxes."""
    ends = np.cumsum(detections.counts)
    for first in range(0, len(ends), _ITEMS):
        items = slice(first, first + _ITEMS)
        rows = slice(int(ends[first] - detections.counts[first]), int(ends[items][-1]))
        part = Detections(*(column[items] for column in detections[:3]), *(column[rows] for column in detections[3:]))
        item, box, column = _select(part, threshold)
        # Formatted as float64, as the reference does; `round_numbers` depends on it.
        texts = [",".join(f"{value:.4f}" for value in each) for each in part.boxes.tolist()]
        actions = column if action_ids is None else np.asarray(action_ids)[column]
        scores = part.scores[box, column]
        for n, b, action, score in zip(item.tolist(), box.tolist(), actions.tolist(), scores.tolist(), strict=True):
            yield f"{part.videos[n]},{part.seconds[n]},{texts[b]},{action},{score:.4f}\n"


def to_table(detections: Detections, threshold: float = 0.0, action_ids: Sequence[int] | None = None) -> Table:
    """Return the table that `read_csv` gives for the file of `write_csv`, without the file.

    Raises:
      DataError: if a keyframe comes twice.
    """
    keyframes = [(video, int(second)) for video, second in zip(detections.videos, detections.seconds, strict=True)]
    if len(set(keyframes)) < len(keyframes):
        twice = next(each for number, each in enumerate(keyframes) if each in keyframes[:number])
        raise DataError(f"detections: second {twice[1]} of video {twice[0]!r} comes twice")
    item, box, column = _select(detections, threshold)
    present, frames = np.unique(item, return_inverse=True)
    return Table(
        [keyframes[number] for number in present],
        frames,
        round_numbers(detections.boxes)[box].astype(np.float32),
        column if action_ids is None else np.asarray(action_ids, np.int64)[column],
        round_numbers(detections.scores[box, column]),
    )


def round_numbers(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers rounded to four decimals as text is, float64.

    The product with 10000 is exact in float64, and the quotient is the number nearest to the decimal.
    """
    return np.rint(np.asarray(values, np.float32).astype(np.float64) * 10000) / 10000


def to_json(
    detections: Detections,
    actions: Mapping[int, str],
    threshold: float = 0.0,
    action_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Return detections as JSON values, one entry per keyframe; the actions of a box begin with the best.

    Args:
      detections: Boxes and scores.
      actions: Names by action; other actions are left out.
      threshold, action_ids: As for `write_csv`.
    """
    made: list[dict[str, Any]] = []
    boxes = []
    for video, second, count in zip(detections.videos, detections.seconds, detections.counts, strict=True):
        rows = detections.boxes[len(boxes) : len(boxes) + int(count)]
        found = [{"box": each, "actions": []} for each in round_numbers(rows).tolist()]
        made.append({"video": video, "second": int(second), "boxes": found})
        boxes += found
    _, box, column = _select(detections, threshold)
    scores = detections.scores[box, column]
    ids = column if action_ids is None else np.asarray(action_ids)[column]
    for row in np.lexsort((ids, -scores)).tolist():
        if (action := int(ids[row])) in actions:
            score = float(round_numbers(scores[row]))
            boxes[box[row]]["actions"].append({"id": action, "name": actions[action], "score": score})
    return made


def _select(detections: Detections, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keyframe, box and column of every detection, int64 `[R]`, in the order of the csv.

    A score that is not a number, or one of a box that is not finite, is no detection.
    """
    scores = np.asarray(detections.scores)[:, 1:]
    with np.errstate(invalid="ignore"):
        if threshold < 0:
            known = np.where(np.isnan(scores), -np.inf, scores)
            chosen = np.arange(scores.shape[1]) == known.argmax(1)[:, None]
            chosen &= known > -np.inf
        else:
            chosen = scores > threshold
    chosen &= np.isfinite(detections.boxes).all(1)[:, None]
    box, column = np.nonzero(chosen)
    item = np.repeat(np.arange(len(detections.counts)), detections.counts)[box]
    order = np.lexsort((box, column, item))
    return item[order], box[order], column[order] + 1


def read_csv(path: str | Path) -> Table:
    """Read annotations or detections of AVA's form: 7 columns, or 8 with a score or the number of a person.

    A first line that begins with 'video_id' is a header.

    Raises:
      DataError: naming the file, and the line that is damaged or has a box whose end lies before its start.
    """
    numbers: dict[Key, int] = {}
    frames, columns = [], []
    for first, lines in _chunks(path):
        if first == 1 and lines[0].startswith("video_id,"):
            lines[0] = "\n"
        videos, values = _parse(lines) or _parse_slowly(path, first, lines)
        if not len(videos):  # blank lines
            continue
        # Consecutive rows of a keyframe are looked up once.
        changes = np.flatnonzero((videos[1:] != videos[:-1]) | (values[1:, 0] != values[:-1, 0])) + 1
        starts = np.append(0, changes)
        found = [
            numbers.setdefault((str(video), int(second)), len(numbers))
            for video, second in zip(videos[starts], values[starts, 0], strict=True)
        ]
        frames.append(np.repeat(found, np.diff(np.append(starts, len(videos)))))
        columns.append(values)
    if not columns:
        raise DataError(f"{path}: has no rows")
    values = np.concatenate(columns)
    boxes, actions = values[:, 1:5].astype(np.float32), values[:, 5].astype(np.int64)
    return Table(list(numbers), np.concatenate(frames), boxes, actions, np.ascontiguousarray(values[:, 6]))


def _chunks(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a file in parts, with the number of the first line of each."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for first in itertools.count(1, _CHUNK):
                lines = list(itertools.islice(file, _CHUNK))
                if not lines:
                    return
                yield first, lines
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error.reason})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _parse(lines: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return videos `[n]` and the other columns, float64 `[n, 7]`, or None if a line is not plain or not allowed."""
    several = lines[-1].count(",")
    if several not in (6, 7):
        return None
    width = max(map(len, lines))
    types = [("video", f"U{width}"), ("second", np.float64), ("box", np.float64, 4), ("action", np.int64)]
    if several == 7:
        types.append(("score", np.float64))
    try:
        rows = np.loadtxt(lines, types, delimiter=",", comments=None, ndmin=1)
    except ValueError:
        return None
    scores = rows["score"] if several == 7 else np.ones(len(rows))
    values = np.column_stack([rows["second"], rows["box"], rows["action"], scores])
    return (rows["video"], values) if _are_rows(values).all() else None


def _are_rows(values: np.ndarray) -> np.ndarray:
    """Return which rows `[n, 7]` are numbers of a whole second, with boxes that end where they begin or later."""
    ordered = (values[:, 3] >= values[:, 1]) & (values[:, 4] >= values[:, 2])
    whole = (values[:, 0] >= 0) & (values[:, 0] == np.floor(values[:, 0]))
    return np.isfinite(values).all(1) & ordered & whole


def _parse_slowly(path: str | Path, first: int, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_parse` returns, line by line.

    Raises:
      DataError: naming the first line that is damaged.
    """
    videos, values = [], []
    for number, line in enumerate(lines, start=first):
        cells = line.strip().split(",")
        if cells == [""]:
            continue
        try:
            video, second, *box, action, score = [*cells, "1"] if len(cells) == 7 else cells
            row = [float(second), *map(float, box), int(action), float(score)]
        except ValueError:
            row = []
        if len(row) != 7 or not all(map(math.isfinite, row)) or not _are_rows(np.array([row], np.float64))[0]:
            raise DataError(
                f"{path}, line {number}: expected video,second,x1,y1,x2,y2,action[,score] with x1 <= x2 and y1 <= y2, "
                f"found {line.strip()[:120]!r}"
            )
        videos.append(video)
        values.append(row)
    return np.array(videos, str), np.array(values, np.float64).reshape(-1, 7)

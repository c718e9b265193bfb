"""Annotations of AVA: rows of people and actions, excluded keyframes, proposals, and the frames of a keyframe.

Reference: open-mmlab/mmaction2, mmaction/datasets/ava_dataset.py and mmaction/datasets/transforms/loading.py
(`SampleAVAFrames`).
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from vlm_jax.errors import DataError
from vlm_jax.interop.torch_files import load_pickle
from vlm_jax.systems.lfb.actions import columns
from vlm_jax.systems.lfb.boxes import read_boxes, without_ending

Key: TypeAlias = tuple[str, int]
"""Video and second of a keyframe."""

AVA_SECONDS = (900, 1800)
"""First and last second of AVA's part of a film."""
MAX_PROPOSALS = 1000
"""Number of proposals of a keyframe that are used, the first ones in their file."""
_LARGEST, _LONGEST_NAME = 1e8, 200
WHOLE_FRAME = np.array([[0.0, 0.0, 1.0, 1.0]])


class Row(NamedTuple):
    """Row of an annotation file: a person's box, relative to the frame, and one action of this person.

    Attributes:
      line: Number of the line in the file, from 1.
      video: Name of the video.
      second: Second of the video.
      box: Left, top, right and bottom edge as shares of the frame.
      action: Id of the action.
      person: Id of the person, None if the file has none.
    """

    line: int
    video: str
    second: int
    box: tuple[float, float, float, float]
    action: int
    person: int | None


class Fault(NamedTuple):
    """Row that cannot be used, or that is kept with a remark.

    Attributes:
      item: Video and second, or what the row has instead.
      reason: Reason in a few words, the same for all rows with this fault.
      detail: Line and what was found there.
      kept: If true, the row is used nevertheless.
    """

    item: str
    reason: str
    detail: str
    kept: bool = False


class Keyframe(NamedTuple):
    """People of one second of a video.

    Attributes:
      video: Name of the video.
      second: Second of the video.
      boxes: Boxes x1, y1, x2, y2 as shares of the frame, float64 `[N, 4]`.
      labels: Actions of each person by column of the classifier, bool `[N, A]`.
      people: Ids of the people, int64 `[N]`; -1 without an id.
    """

    video: str
    second: int
    boxes: np.ndarray
    labels: np.ndarray
    people: np.ndarray

    @property
    def key(self) -> Key:
        """Return video and second."""
        return self.video, self.second


def name_of(key: Key) -> str:
    """Return a keyframe's name in files, such as '0f39OWEqJ24,0902'."""
    return f"{key[0]},{key[1]:04d}"


def read_rows(
    path: Path | str, num_classes: int, seconds: tuple[int, int | None] = AVA_SECONDS
) -> tuple[list[Row], list[Fault]]:
    """Return the rows of an annotation file that can be used, and the faults of all others.

    A line has the columns video, second, x1, y1, x2, y2, action and person; the last one may be missing. There is no
    header in AVA's files; one that begins with 'video_id' is skipped.

    Args:
      path: File of annotations, csv.
      num_classes: Number of columns of the classifier; actions are numbered from 1 to `num_classes` - 1.
      seconds: First and last second of the annotated part; the last may be None.

    Raises:
      DataError: for a file that is missing or no csv file.
    """
    rows, faults, seen = [], [], set()
    for line, cells in _lines(path):
        if line == 1 and cells[0].strip() == "video_id":
            continue
        item, place = ",".join(cells[:2]), f"{path}: line {line}"
        try:
            row = _row(line, cells)
        except ValueError as error:
            faults.append(Fault(item, "line that cannot be read", f"{place}: {error}"))
            continue
        reason = _reason(row, num_classes, seconds)
        if reason:
            faults.append(Fault(item, reason, f"{place}: {','.join(cells)}"))
            continue
        x1, y1, x2, y2 = row.box
        if x1 == x2 or y1 == y2:
            faults.append(Fault(item, "box without area", f"{place}: {','.join(cells)}", kept=True))
        if (same := row[1:5]) in seen:
            faults.append(Fault(item, "row that occurs twice", f"{place}: {','.join(cells)}", kept=True))
        seen.add(same)
        rows.append(row)
    return rows, faults


def _row(line: int, cells: Sequence[str]) -> Row:
    if len(cells) not in (7, 8):
        raise ValueError(f"{len(cells)} columns, expected video, second, x1, y1, x2, y2, action and person")
    name = cells[0]
    if not (name and name.isprintable() and "," not in name and len(name) <= _LONGEST_NAME):
        raise ValueError(f"video {name[:50]!r}, expected a name without commas")
    box = tuple(map(float, cells[2:6]))
    if not all(map(math.isfinite, box)):
        raise ValueError(f"box {box}")
    return Row(line, name, _whole(cells[1]), box, _whole(cells[6]), _whole(cells[7]) if len(cells) == 8 else None)


def _whole(text: str) -> int:
    """Return a whole number, which some files write as '0902' or '902.0'."""
    value = float(text)
    if not value.is_integer() or abs(value) > _LARGEST:
        raise ValueError(f"{text!r}, expected a whole number")
    return int(value)


def _reason(row: Row, num_classes: int, seconds: tuple[int, int | None]) -> str:
    """Return why a row cannot be used; '' if it can."""
    x1, y1, x2, y2 = row.box
    if min(row.box) < 0 or max(row.box) > 1:
        return "box outside of 0 to 1"
    if x2 < x1 or y2 < y1:
        return "box that ends before it begins"
    if not 1 <= row.action < num_classes:
        return f"action that is not one of 1 to {num_classes - 1}"
    if row.second < seconds[0] or (seconds[1] is not None and row.second > seconds[1]):
        return f"second before {seconds[0]}" if row.second < seconds[0] else f"second after {seconds[1]}"
    return ""


def group_rows(rows: Sequence[Row], num_classes: int, chosen: Sequence[int] = ()) -> list[Keyframe]:
    """Return the keyframes of rows, in order of first appearance.

    Rows of a keyframe with exactly equal boxes are one person, with the id of its first row; people stand in order of
    first appearance.

    Args:
      rows: Rows of an annotation file.
      num_classes: Number of columns of the labels; with chosen actions, their number plus 1.
      chosen: Ids of the actions to keep, which become the columns 1, 2, ...; empty keeps all. A keyframe without any
        of them vanishes.
    """
    column = columns(chosen or range(1, num_classes), num_classes)
    people: dict[Key, dict[tuple[float, ...], tuple[int | None, list[int]]]] = {}
    for row in rows:
        if row.action in column:
            boxes = people.setdefault((row.video, row.second), {})
            boxes.setdefault(row.box, (row.person, []))[1].append(column[row.action])
    found = []
    for (video, second), boxes in people.items():
        labels = np.zeros((len(boxes), num_classes), bool)
        for label, (_, actions) in zip(labels, boxes.values(), strict=True):
            label[actions] = True
        ids = np.array([-1 if person is None else person for person, _ in boxes.values()], np.int64)
        found.append(Keyframe(video, second, np.array(list(boxes), np.float64), labels, ids))
    return found


def read_excluded(path: Path | str) -> set[Key]:
    """Return the excluded keyframes of a csv file with the columns video and second.

    Raises:
      DataError: for a file that is missing, or a line that cannot be read.
    """
    found = set()
    for line, cells in _lines(path):
        try:
            video, second = cells
            if not video:
                raise ValueError("a keyframe without a video")
            found.add((video, _whole(second)))
        except ValueError:
            raise DataError(f"{path}: line {line}: expected video and second, found {','.join(cells)!r}") from None
    return found


def _lines(path: Path | str) -> Iterator[tuple[int, list[str]]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        for line, cells in enumerate(csv.reader(io.StringIO(text)), start=1):
            if cells:
                yield line, cells
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 csv file ({error})") from None


def read_proposals(path: Path | str) -> dict[Key, np.ndarray]:
    """Return the proposals of each keyframe: x1, y1, x2, y2 as shares of the frame, and the score; float64 `[N, 5]`.

    The file is a csv file of `read_boxes`, or a pickle, of Python 2 or 3, of a dict from 'VIDEO,SECOND' to arrays
    `[N, 5]`, or `[N, 4]` without scores, which then are 1. A pickle is read without executing code.

    Raises:
      TorchFileError: for a file that is missing, damaged or unsafe.
      DataError: for other content; it names the first key that is wrong.
    """
    if Path(path).suffix.lower() == ".csv":
        by_video = read_boxes(path)
        return {(without_ending(video), second): rows for video in by_video for second, rows in by_video[video].items()}
    content = load_pickle(path, encoding="latin1")
    if not isinstance(content, dict):
        raise DataError(f"{path}: a {type(content).__name__}, expected a dict from 'VIDEO,SECOND' to boxes")
    found = {}
    for name, boxes in content.items():
        try:
            video, _, second = str(name).rpartition(",")
            key = video, _whole(second)
            rows = np.asarray(boxes, np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{path}: proposals of {name!r}, expected 'VIDEO,SECOND' and an array of boxes") from None
        rows = rows.reshape(0, 5) if not rows.size else rows
        if rows.ndim != 2 or rows.shape[1] not in (4, 5):
            raise DataError(f"{path}: {name}: shape {list(rows.shape)}, expected boxes [N, 5] or [N, 4]")
        if not np.isfinite(rows).all() or (rows[:, :4] < 0).any() or (rows[:, :4] > 1).any():
            raise DataError(f"{path}: {name}: boxes outside of 0 to 1; expected shares of the frame, not pixels")
        found[key] = rows if rows.shape[1] == 5 else as_proposals(rows)
    return found


def as_proposals(boxes: np.ndarray) -> np.ndarray:
    """Return boxes `[N, 4]` as proposals with score 1, float64 `[N, 5]`."""
    return np.concatenate([boxes, np.ones((len(boxes), 1))], 1)


def proposals_of(proposals: Mapping[Key, np.ndarray], key: Key) -> np.ndarray:
    """Return the proposals of a keyframe, `[N, 5]`; the whole frame with score 1 where there are none."""
    found = proposals.get(key)
    return found if found is not None and len(found) else as_proposals(WHOLE_FRAME)


def above_threshold(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return the indices of the proposals that are used, in file order: at most 1000, and always the best one.

    Args:
      scores: Scores of the proposals of a keyframe, float64 `[N]`.
      threshold: Smallest score; where no proposal has it, the best score of the keyframe.
    """
    return np.flatnonzero(scores >= min(threshold, scores.max(initial=-np.inf)))[:MAX_PROPOSALS]


class Sampling(NamedTuple):
    """Rule by which the frames of a clip are taken from a video.

    Attributes:
      num_frames: Number of frames per clip, T.
      interval: Frames from one to the next.
      fps: Frames per second of the video.
      jitter: Largest shift of a frame in training, drawn for each frame from [-jitter, jitter).
      frame_shift: Frames by which all indices are later. mmaction2 1.x adds the index of the first frame twice: 1; 0.x
        adds it once: 0.
    """

    num_frames: int = 4
    interval: int = 16
    fps: int = 30
    jitter: int = 8
    frame_shift: int = 1

    def numbers(self, second: int, start: int, length: int, shifts: np.ndarray | int = 0) -> np.ndarray:
        """Return the numbers of a clip's frames, int64 `[T]`; the first frame of a video has the number 1.

        Args:
          second: Second of the keyframe.
          start: Second of the video's first frame.
          length: Number of frames of the video.
          shifts: Shifts of the frames, `[T]`.
        """
        centre = self.fps * (second - start) + 1 + self.frame_shift
        offsets = (np.arange(self.num_frames) - self.num_frames // 2) * self.interval
        return (centre + offsets + shifts).clip(1, length)

    def draw_shifts(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the shifts of a training clip's frames: int64 `[T]`."""
        return (
            rng.integers(-self.jitter, self.jitter, self.num_frames) if self.jitter else np.zeros(self.num_frames, int)
        )

    def possible_numbers(self, second: int, start: int, length: int) -> list[int]:
        """Return all frames that a clip may show, with either `frame_shift`, ascending."""
        shifts = np.arange(-self.jitter, self.jitter) if self.jitter else np.zeros(1, np.int64)
        both = [self._replace(frame_shift=later).numbers(second, start, length, shifts[:, None]) for later in (0, 1)]
        return np.unique(both).tolist()

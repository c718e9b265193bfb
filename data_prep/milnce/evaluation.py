"""Evaluation records of MIL-NCE, from lists of items and their videos."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.tables import cell_seconds, cell_text, read_rows
from vlm_jax.data import images
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.video import decode, sampling

DAMAGES = ("truncated", "unreadable")
"""Faults of videos that may still have some of their frames."""


def youcook2_items(path: Path) -> list[dict[str, object]]:
    """Return the items of validation_youcook.csv: columns end, start (seconds), task, text, video_id."""
    items = []
    for number, row in enumerate(read_rows(path, ("end", "start", "task", "text", "video_id")), start=2):
        stem = f"validation/{row['task']}/{row['video_id']}"
        paths = [stem + ending for ending in (".mp4", ".mkv", ".webm")]
        items.append(_item(path, number, row, paths, row["video_id"]))
    return items


def segment_items(path: Path) -> list[dict[str, object]]:
    """Return the items of a user's list: columns video_path, start, end (seconds), text."""
    rows = read_rows(path, ("video_path", "start", "end", "text"))
    return [
        _item(path, number, row, [row["video_path"]], row["video_path"]) for number, row in enumerate(rows, start=2)
    ]


def msrvtt_items(path: Path) -> list[dict[str, object]]:
    """Return the items of msrvtt_test.csv: whole videos, columns key, vid_key, video_id, sentence."""
    return [
        {
            "paths": [f"{row['video_id']}.mp4"],
            "video_id": row["video_id"],
            "text": cell_text(row["sentence"]),
            "start": 0.0,
            "end": None,
        }
        for row in read_rows(path, ("key", "vid_key", "video_id", "sentence"))
    ]


def _item(path: Path, number: int, row: dict[str, str], paths: list[str], video_id: str) -> dict[str, object]:
    times = {key: cell_seconds(row[key], f"{path}: line {number}, column {key!r}") for key in ("start", "end")}
    return {"paths": paths, "video_id": video_id, "text": cell_text(row["text"]), **times}


def retrieval_records(
    items: Sequence[dict[str, object]],
    *,
    video_root: Path,
    windows: int,
    num_frames: int,
    fps: int,
    size: int,
    strict: bool,
) -> Iterator[Record | Skip]:
    """Yield a record for every item, or the reason why it gives none.

    As in the reference, missing frames of a damaged video are black.

    Args:
      items: Items with `paths` (the first that exists is read), `video_id`, `text`, `start`, `end` (seconds).
      video_root: Folder of the videos.
      windows: Number of clips per item.
      num_frames: Number of frames per clip.
      fps: Frames per second.
      size: Height and width of the frames, pixels.
      strict: If true, items of damaged videos are left out.
    """
    for group, item in enumerate(items):
        name = f"{item['video_id']} {item['start']}-{item['end']}"
        paths, files = [video_root / path for path in item["paths"]], tuple(f"videos/{path}" for path in item["paths"])
        path = next((path for path in paths if os.path.isfile(path)), paths[0])
        try:
            duration = decode.probe(path).duration
            end = duration if item["end"] is None else item["end"]
            if fault := _impossible(item["start"], end, duration):
                yield Skip(name, *fault)
                continue
            starts = sampling.clip_starts(item["start"], end, windows, num_frames / fps)
            read = functools.partial(decode.read_clips, path, starts, num_frames, fps, decode.square_crop(size))
            clips, damage = _read(read, strict)
        except decode.VideoError as error:
            yield Skip(name, error.reason, str(error), files=files)
            continue
        if damage:
            reason = f"{damage.reason}, black where frames are missing"
            yield Skip(name, reason, str(damage), kept=True, files=files)
        frames = [images.encode_png(frame) for clip in clips for frame in clip]
        example = {"video_id": item["video_id"], "text": item["text"], "start": item["start"], "end": end}
        yield Record({**example, "clip_starts": starts, "frames": frames}, group)


def _impossible(start: float, end: float, duration: float) -> tuple[str, str] | None:
    """Return reason and detail if an item's times are impossible, else None. A duration of 0 is unknown."""
    times = f"{start:g} to {end:g} s"
    if end < start:
        return "end before start", times
    if end == start:
        return "zero length", times
    if duration and start >= duration:
        return "beyond the video", f"{times}, the video lasts {duration:.2f} s"
    return None


def _read(read: Callable[..., np.ndarray], strict: bool) -> tuple[np.ndarray, decode.VideoError | None]:
    """Return the frames of a video, and the error if it is damaged and was read all the same.

    Raises:
      VideoError: for a video that cannot be read, or that is damaged while `strict` is true.
    """
    try:
        return read(strict=True), None
    except decode.VideoError as error:
        if strict or error.reason not in DAMAGES:
            raise
        return read(strict=False), error


def hmdb51_items(path: Path) -> list[dict[str, object]]:
    """Return the items of hmdb51.csv.

    Its columns are video_id, label (`CLASS_test`), and split1 to split3: 1 train, 2 test, 0 unused.

    Raises:
      DataError: for another code, or an empty video_id or label.
    """
    columns = ("split1", "split2", "split3")
    items = []
    for number, row in enumerate(read_rows(path, ("video_id", "label", *columns)), start=2):
        label = row["label"].removesuffix("_test")
        if not label or not row["video_id"]:
            raise DataError(f"{path}: line {number}: expected a video_id and a label, found an empty cell")
        for column in columns:
            if row[column] not in ("0", "1", "2"):
                raise DataError(
                    f"{path}: line {number}, column {column!r}: expected 1 (train), 2 (test) or 0 (unused), "
                    f"found {row[column]!r}"
                )
        splits = [int(row[column]) for column in columns]
        items.append({"path": f"{label}/{row['video_id']}", "label": label, "splits": splits})
    return items


def classification_records(
    items: Sequence[dict[str, object]], *, video_root: Path, windows: int, num_frames: int, size: int, strict: bool
) -> Iterator[Record | Skip]:
    """Yield a record for every item, or the reason why it gives none.

    As in the reference, a damaged video counts with the frames that it has.

    Args:
      items: Items with `path`, `label`, `splits`.
      video_root: Folder of the videos.
      windows: Number of windows per item, taken over all its frames.
      num_frames: Number of frames per window.
      size: Height and width of the frames, pixels.
      strict: If true, damaged videos are left out.
    """
    for group, item in enumerate(items):
        files = (f"videos/{item['path']}",)
        try:
            path = video_root / item["path"]
            read = functools.partial(decode.read_frames, path, filters=decode.square_crop(size))
            frames, damage = _read(read, strict)
        except decode.VideoError as error:
            yield Skip(item["path"], error.reason, str(error), files=files)
            continue
        if damage:
            reason = f"{damage.reason}, only the frames that are there"
            yield Skip(item["path"], reason, str(damage), kept=True, files=files)
        chosen = sampling.frame_windows(len(frames), windows, num_frames)
        shown = np.unique(chosen[chosen >= 0])
        places = np.where(chosen >= 0, np.searchsorted(shown, chosen), -1)
        example = {"video_path": item["path"], "label": item["label"], "splits": item["splits"]}
        pictures = [images.encode_png(frames[number]) for number in shown]
        yield Record({**example, "windows": places.ravel().astype(np.int32), "frames": pictures}, group)

"""Records of CTRL's windows, from released files or from our own features (launch/extract_features.py)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import features as feature_files
from vlm_jax.array_files import load_array
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.features import FeatureError, Settings
from vlm_jax.interop.torch_files import TorchFileError, load_pickle
from vlm_jax.systems.ctrl.windows import feature_windows, parse, window_files

FEATURES = "features"
"""Name of the folder of features in `Skip.files`."""


def window_items(folder: Path, frames: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return one item per video, sorted by name, with the names of its files.

    A file that is no window becomes an item without a video.

    Args:
      folder: Folder of VIDEO_START_END.npy files.
      frames: Number of frames of each video, by name, where known.

    Raises:
      DataError: for a folder that cannot be read or has no windows.
    """
    try:
        found = window_files(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    if not found.names:
        raise DataError(f"{folder}: no file named like VIDEO_START_END.npy among {len(found.skipped)}")
    files: dict[str, list[str]] = {}
    for name, video in zip(found.names, found.videos, strict=True):
        files.setdefault(video, []).append(name)
    items = [
        {"video": video, "files": names, "num_frames": num_frames(frames, video)}
        for video, names in sorted(files.items())
    ]
    return [*items, *({"video": "", "files": [name], "num_frames": 0} for name in found.skipped)]


def window_records(items: Sequence[Mapping[str, Any]], *, root: Path, dim: int, fps: float) -> Iterator[Record | Skip]:
    """Yield a record with the windows of every video, and the reason for every file that is left out.

    Args:
      items: Items of `window_items`.
      root: Folder of the files.
      dim: Width of a feature.
      fps: Frames per second in which the windows are counted; 0 where unknown.
    """
    group = 0
    for item in items:
        spans, features = [], []
        for name in item["files"]:
            if not item["video"]:
                yield Skip(name, "not named like a window")
                continue
            feature = read_window(root / name, dim)
            if isinstance(feature, Skip):
                yield dataclasses.replace(feature, files=(f"{FEATURES}/{name}",))
                continue
            spans.append(parse(name)[1:])
            features.append(feature)
        if spans:
            spans, features = np.array(spans, np.int64), np.stack(features)
            yield Record(_example(item["video"], fps, item["num_frames"], spans, features), group)
            group += 1


def read_window(path: Path, dim: int) -> np.ndarray | Skip:
    """Return the feature of a window's file, float32 `[dim]`, or the reason why it cannot be used."""
    try:
        feature = load_array(path).reshape(-1).astype(np.float32)
    except (OSError, ValueError) as error:
        return Skip(path.name, "unreadable", " ".join(str(error).split()))
    if len(feature) != dim:
        return Skip(path.name, "wrong width", f"{len(feature)} numbers, expected {dim}")
    if not np.isfinite(feature).all():
        return Skip(path.name, "not finite", f"{np.count_nonzero(~np.isfinite(feature))} of {dim} numbers")
    return feature


def is_own(folder: Path) -> bool:
    """Return true if a folder holds features from launch/extract_features.py."""
    return (folder / feature_files.SETTINGS).is_file()


def feature_items(folder: Path, frames: Mapping[str, int], ending: str) -> list[dict[str, Any]]:
    """Return one item per video of a folder of our own features.

    Args:
      folder: Folder that launch/extract_features.py wrote.
      frames: Number of frames of each video, by name, where known.
      ending: Ending that video names have in the annotations, such as '.avi'.

    Raises:
      DataError: for a folder without features.
    """
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.npy"))
    if not names:
        raise DataError(f"{folder}: no features there")
    return [{"video": name + ending, "name": name, "num_frames": num_frames(frames, name + ending)} for name in names]


def feature_records(
    items: Sequence[Mapping[str, Any]],
    *,
    root: Path,
    settings: Settings,
    fps: float,
    lengths: Sequence[int],
    overlap: float,
) -> Iterator[Record | Skip]:
    """Yield a record with the windows of every video, or the reason why a video gives none.

    The feature of a window is the mean of the rows inside it.

    Args:
      items: Items of `feature_items`.
      root: Folder of the features.
      settings: Settings that the features were extracted with.
      fps: Frames per second in which the windows are counted.
      lengths: Lengths of the windows, frames.
      overlap: Part of a window that the next window of its length shares, from 0 to 1.
    """
    group = 0
    for item in items:
        try:
            features = feature_files.load(root, item["name"], settings)
            duration = feature_files.load_duration(root, item["name"])
        except FeatureError as error:
            yield Skip(item["video"], "unreadable", str(error), files=(f"{FEATURES}/{item['name']}.npy",))
            continue
        if not len(features) or not np.isfinite(features).all():
            yield Skip(item["video"], "not finite", f"{len(features)} rows, expected some, all of them finite")
            continue
        count = item["num_frames"] or int(duration * fps)
        count, spans, means = feature_windows(features, settings, fps, lengths, overlap, count)
        if not len(spans):
            yield Skip(item["video"], "shorter than a window", f"{count} frames, windows of {min(lengths)} and more")
            continue
        yield Record(_example(item["video"], fps, count, spans, means), group)
        group += 1


def num_frames(frames: Mapping[str, int], video: str) -> int:
    """Return the number of frames of a video, 0 where unknown.

    Names in the table may end before the video's first dot.
    """
    return frames.get(video, frames.get(video.split(".")[0], 0))


def frame_counts(path: Path) -> dict[str, int]:
    """Read the number of frames of each video (`video_allframes_info.pkl`).

    Raises:
      DataError: for a file that cannot be read or holds something else.
    """
    try:
        content = load_pickle(path, "latin1")
    except TorchFileError as error:
        raise DataError(str(error).replace("not a torch file", "not a pickle")) from None
    if not isinstance(content, dict) or not all(isinstance(count, int) for count in content.values()):
        raise DataError(f"{path}: expected a pickled dict of frame counts by video, found a {type(content).__name__}")
    return {name.decode("latin1") if isinstance(name, bytes) else str(name): n for name, n in content.items()}


def _example(video: str, fps: float, count: int, spans: np.ndarray, features: np.ndarray) -> dict[str, Any]:
    sizes = {"fps": np.float64(fps), "num_frames": np.int64(count)}
    return {"video": video, **sizes, "spans": spans, "features": features}

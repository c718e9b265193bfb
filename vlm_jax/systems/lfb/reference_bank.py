"""Bank files of open-mmlab/mmaction2: `lfb_train.pkl` and `lfb_val.pkl`, written by `torch.save`.

A file is {video: {second: list of `[C]`}}, by mmaction/models/roi_heads/shared_heads/lfb_infer_head.py. Instead of the
list, a second may have one tensor `[n, C]`. Seconds without features are absent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.errors import DataError
from vlm_jax.interop import torch_files
from vlm_jax.systems.lfb.bank import TYPES, Bank

SOURCE = {"checkpoint": "open-mmlab/mmaction2", "fingerprint": ""}
"""Source of converted banks: their files do not say which weights made them."""


class Items(NamedTuple):
    """Items of a bank, as `bank.write_bank` takes them.

    Attributes:
      videos: Video of every item, N names.
      seconds: Second of every item, int64 `[N]`.
      counts: Number of rows of every item, int64 `[N]`.
      features: Rows of all items in their order, `[M, C]`.
    """

    videos: list[str]
    seconds: np.ndarray
    counts: np.ndarray
    features: np.ndarray


def read_reference_bank(path: str | Path, dtype: str = "") -> Items:
    """Read a bank file of mmaction2, in the zip or the legacy form, without torch and without executing its code.

    Args:
      path: File to read.
      dtype: Type of the features, 'float16' or 'float32'; empty for that of the file.

    Raises:
      TorchFileError: if the file is damaged or asks for anything but tensors.
      DataError: if it is no bank, or its features differ in width or type.
    """
    content = torch_files.load(path)
    if not isinstance(content, dict) or not all(isinstance(seconds, dict) for seconds in content.values()):
        raise DataError(f"{path}: not a bank; expected a dict of videos, each a dict of seconds")
    places = [(video, second) for video, seconds in content.items() for second in seconds]
    if wrong := [place for place in places if not (isinstance(place[0], str) and type(place[1]) is int)]:
        raise DataError(
            f"{path}: not a bank; its keys are such as {wrong[0]!r}, expected the name of a video, a second"
        )
    counts = np.array([_count(path, video, second, content[video][second]) for video, second in places], np.int64)
    if not counts.sum():
        raise DataError(f"{path}: has no features")
    first = next(content[video][second][0] for (video, second), count in zip(places, counts, strict=True) if count)
    if first.dtype.name not in TYPES or first.ndim != 1:
        raise DataError(f"{path}: features are {first.dtype} {list(first.shape)}, expected {' or '.join(TYPES)} [C]")
    features = np.empty((counts.sum(), len(first)), dtype or first.dtype)
    row = 0
    for video, second in places:
        # Taken out of the content, so that a large bank is not held twice.
        for feature in content[video].pop(second):
            if feature.shape != first.shape or feature.dtype != first.dtype:
                raise DataError(
                    f"{path}: video {video!r}, second {second}: a feature is {feature.dtype} {list(feature.shape)}, "
                    f"expected {first.dtype} {list(first.shape)} as before"
                )
            with np.errstate(over="ignore"):  # bank.write_bank reports what is too large for float16
                features[row] = feature
            row += 1
    kept = np.flatnonzero(counts)
    seconds = np.array([places[item][1] for item in kept], np.int64)
    return Items([places[item][0] for item in kept], seconds, counts[kept], features)


def write_reference_bank(path: str | Path, bank: Bank, dtype: str = "") -> None:
    """Write a bank as a file of mmaction2, which `torch.load(path)` reads; seconds without rows are left out.

    Args:
      path: File to write.
      bank: Bank to write.
      dtype: Type of the features, 'float16' or 'float32'; empty for that of the bank.

    Raises:
      DataError: if a feature is too large for the type.
    """
    content: dict[str, dict[int, list[np.ndarray]]] = {}
    for video, second, features in _items(bank):
        with np.errstate(over="ignore"):
            features = np.asarray(features, dtype or bank.dtype)
        if not np.isfinite(features).all():
            raise DataError(
                f"{bank.name}: a feature of video {video!r}, second {second}, is not a finite {dtype} number"
            )
        if len(features):
            content.setdefault(video, {})[second] = list(features)
    torch_files.save(path, content)


def _items(bank: Bank) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield video, second and rows `[n, C]` of every item, videos in the order of the bank, then by second."""
    for video, rows in bank.videos.items():
        for second, start, count in zip(rows.seconds.tolist(), rows.starts, rows.counts, strict=True):
            yield video, second, rows.features[start : start + count]


def _count(path: str | Path, video: str, second: int, value: Any) -> int:
    """Return the number of features of a second."""
    stacked = isinstance(value, np.ndarray) and value.ndim == 2
    if not stacked and not (isinstance(value, list) and all(isinstance(entry, np.ndarray) for entry in value)):
        raise DataError(
            f"{path}: video {video!r}, second {second}: found a {type(value).__name__}, expected a list of features"
        )
    return len(value)

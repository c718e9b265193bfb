"""Feature banks: features of the people in a video, by second, and how a clip draws from them (numpy only).

Source: Wu et al. 2019, "Long-Term Feature Banks for Detailed Video Understanding", section 3; open-mmlab/mmaction2,
mmaction/models/roi_heads/shared_heads/lfb.py. A bank is a folder:

    features.npy   `[M, C]`, float16 or float32, one row per box, those of an item together
    counts.npy     int `[N]`, number of rows of every item; an item is one second of a video
    bank.json      videos and seconds of the items, width, type, and `source`: what the features depend on
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.errors import DataError
from vlm_jax.files import replacing, write_json

KIND = "lfb_bank"
FEATURES, COUNTS, SETTINGS = "features.npy", "counts.npy", "bank.json"
TYPES = ("float16", "float32")
INFORMATION = ("checkpoint", "step", "split")
"""Keys of a bank's source that may differ between banks that are used together."""
_CHUNK = 1 << 14  # rows that are checked or copied at a time


class VideoRows(NamedTuple):
    """Rows of one video.

    Attributes:
      seconds: Seconds that have an item, int64 `[n]`, ascending.
      starts: First row of each second in `features`, int64 `[n]`.
      counts: Number of rows of each second, int64 `[n]`.
      features: Rows of the whole bank that the video comes from, `[M, C]`.
    """

    seconds: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    features: np.ndarray


@dataclasses.dataclass(frozen=True)
class Bank:
    """Features of people by video and second.

    Attributes:
      name: Name in error messages.
      videos: Rows by video.
      dim: Width of a row, C.
      dtype: Type of the rows.
      source: Checkpoint, fingerprint and settings that the features depend on.
    """

    name: str
    videos: Mapping[str, VideoRows]
    dim: int
    dtype: np.dtype
    source: Mapping[str, Any]

    @classmethod
    def from_arrays(
        cls,
        videos: Sequence[str],
        seconds: Sequence[int] | np.ndarray,
        counts: Sequence[int] | np.ndarray,
        features: np.ndarray,
        source: Mapping[str, Any],
        name: str = "bank",
    ) -> "Bank":
        """Make a bank of packed rows.

        Args:
          videos: Video of every item, N names.
          seconds: Second of every item, int `[N]`.
          counts: Number of rows of every item, int `[N]`.
          features: Rows of all items in their order, `[M, C]`.
          source: What the features depend on.
          name: Name in error messages.

        Raises:
          DataError: if the numbers of items or rows differ, a second comes twice, or there is no row.
        """
        seconds, counts = np.asarray(seconds), np.asarray(counts)
        if features.ndim != 2 or features.dtype.name not in TYPES:
            raise DataError(f"{name}: features are {features.dtype} {list(features.shape)}, expected {TYPES} [M, C]")
        if not len(videos) == len(seconds) == len(counts):
            found = f"{len(videos)} videos, {len(seconds)} seconds and {len(counts)} counts"
            raise DataError(f"{name}: found {found} of items, expected equally many")
        if not features.size:
            raise DataError(f"{name}: has no features")
        if counts.dtype.kind not in "iu" or seconds.dtype.kind not in "iu" or counts.min() < 0:
            raise DataError(f"{name}: counts or seconds of items are no whole numbers from 0 on")
        if counts.sum() != len(features):
            raise DataError(f"{name}: {len(features)} rows of features, but the counts sum up to {counts.sum()}")
        names, item_videos = np.unique(np.asarray(videos, str), return_inverse=True)
        seconds, counts = seconds.astype(np.int64), counts.astype(np.int64)
        order = np.lexsort((seconds, item_videos))
        twice = np.flatnonzero((np.diff(item_videos[order]) == 0) & (np.diff(seconds[order]) == 0))
        if len(twice):
            item = order[twice[0]]
            raise DataError(f"{name}: second {seconds[item]} of video {videos[item]!r} comes twice")
        starts = np.cumsum(counts) - counts
        parts = np.split(order, np.searchsorted(item_videos[order], np.arange(1, len(names))))
        rows = {
            str(video): VideoRows(seconds[part], starts[part], counts[part], features)
            for video, part in zip(names, parts, strict=True)
        }
        in_order = {video: rows[video] for video in dict.fromkeys(videos)}
        return cls(name, in_order, features.shape[1], features.dtype, dict(source))

    @classmethod
    def open(cls, folders: Sequence[str | Path]) -> "Bank":
        """Open banks that were written by `write_bank`; features are read from disk when they are needed.

        A video that is in several banks is read from the last of them.

        Args:
          folders: Folders of the banks, such as those of the training and the validation videos.

        Raises:
          DataError: if there is none, one is missing or damaged, or they differ in width, type or source.
        """
        banks = [_open(Path(folder)) for folder in folders]
        if not banks:
            raise DataError("bank: no folder is given; expected the folders of one or more banks")
        first, videos = banks[0], {}
        for bank in banks:
            for key, found, wanted in _settings(bank, first):
                if found != wanted:
                    raise DataError(f"{bank.name}: made with {key} = {found!r}, but {first.name} with {wanted!r}")
            videos |= bank.videos
        return cls(", ".join(bank.name for bank in banks), videos, first.dim, first.dtype, banks[-1].source)

    def rows_in_window(self, video: str, second: int, window: int, per_second: int | None = None) -> int:
        """Return the number of rows in the window of a keyframe: what `sample` returns with a generator.

        Args:
          video: Name of the video.
          second: Second of the keyframe.
          window: Length of the window in seconds.
          per_second: Largest number of rows that count per second; None for all rows. With the value given to `sample`,
            the result is the number of rows that it returns without a generator.

        Raises:
          DataError: if the bank lacks the video.
        """
        counts = self._window(video, second, window)[1]
        return int(counts.sum() if per_second is None else np.minimum(counts, per_second).sum())

    def sample(
        self,
        video: str,
        second: int,
        num_boxes: int,
        rng: np.random.Generator | None,
        window: int = 60,
        per_second: int = 5,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a keyframe's window and the slots of every box, which are drawn for each box anew.

        The window is [second - window // 2, second - window // 2 + window). From each of its seconds, a box gets up to
        `per_second` rows without replacement.

        Args:
          video: Name of the video.
          second: Second of the keyframe.
          num_boxes: Number of boxes, N.
          rng: Generator of random numbers; without one, each box gets the first rows of every second as stored.
          window: Length of the window in seconds, W.
          per_second: Number of slots per second, K.

        Returns:
          Rows `[S, C]` in the bank's type, and int32 `[N, W * K]`: the row in every slot, second by second, or -1 if
          the slot is empty.

        Raises:
          DataError: if the bank lacks the video.
        """
        starts, counts = self._window(video, second, window)
        if rng is None:
            counts = np.minimum(counts, per_second)
            order = np.broadcast_to(np.arange(counts.sum()), (num_boxes, counts.sum()))
        else:
            order = random_order(counts, num_boxes, rng)
        rows = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return self.videos[video].features[rows], sample_slots(counts, order, per_second)

    def _window(self, video: str, second: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first row and the number of rows of every second of a window, int64 `[W]` each."""
        if video not in self.videos:
            raise DataError(f"{self.name}: no features of video {video!r}; it has {len(self.videos)} videos")
        rows, first = self.videos[video], second - window // 2
        inside = slice(*np.searchsorted(rows.seconds, [first, first + window]))
        starts, counts = np.zeros((2, window), np.int64)
        starts[rows.seconds[inside] - first] = rows.starts[inside]
        counts[rows.seconds[inside] - first] = rows.counts[inside]
        return starts, counts


def random_order(counts: np.ndarray, num_boxes: int, rng: np.random.Generator) -> np.ndarray:
    """Return an independent order of the rows of a window for each box, permuted within every second.

    Args:
      counts: Number of rows of every second, int64 `[W]`.
      num_boxes: Number of boxes, N.
      rng: Generator of random numbers.

    Returns:
      int64 `[N, S]`; the rows of a second stay together.
    """
    second = np.repeat(np.arange(len(counts)), counts)
    draws = rng.random((num_boxes, len(second)))
    return np.lexsort((draws, np.broadcast_to(second, draws.shape)), axis=-1)


def sample_slots(counts: np.ndarray, order: np.ndarray, per_second: int) -> np.ndarray:
    """Return the row in every slot: of each second, the first rows of its permutation (mmaction2, lfb.py).

    Args:
      counts: Number of rows of every second of the window, int64 `[W]`.
      order: Rows of the window for each box, second by second and permuted within a second, int `[N, S]`.
      per_second: Number of slots per second, K.

    Returns:
      int32 `[N, W * K]`, -1 in empty slots.
    """
    place = np.arange(per_second)
    rows = (np.cumsum(counts) - counts)[:, None] + place
    filled = place < counts[:, None]
    slots = np.full((len(order), filled.size), -1, np.int32)
    slots[:, filled.ravel()] = order[:, rows[filled]]
    return slots


def write_bank(
    folder: str | Path,
    videos: Sequence[str],
    seconds: Sequence[int] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    features: np.ndarray,
    source: Mapping[str, Any],
) -> Bank:
    """Write a bank and return it, opened; a bank that the folder has already is replaced.

    Args:
      folder: Folder to write. If `features` is its memory-mapped features.npy, as an evaluation with a sink wrote it,
        that file stays as it is.
      videos, seconds, counts, features: Items and their rows, as in `Bank.from_arrays`.
      source: What the features depend on, JSON values: `fingerprint` of the model's variables, `checkpoint`, and
        settings of frames and boxes. Banks that are used together must agree in all keys but `INFORMATION`.

    Raises:
      DataError: in the cases of `Bank.from_arrays`, or if a feature is not finite.
    """
    folder, features = Path(folder), np.asanyarray(features)
    bank = Bank.from_arrays(videos, seconds, counts, features, source, f"bank {folder}")
    _check_finite(bank, videos, seconds, counts, features)
    folder.mkdir(parents=True, exist_ok=True)
    # Without its settings, a folder is no bank: a writer that is killed leaves none behind.
    (folder / SETTINGS).unlink(missing_ok=True)
    given = getattr(features, "filename", None)
    if given is None or Path(given).resolve() != (folder / FEATURES).resolve():
        _save(folder / FEATURES, features)
    _save(folder / COUNTS, np.asarray(counts, np.int64))
    numbers = {video: number for number, video in enumerate(bank.videos)}
    content = {
        "kind": KIND,
        "dim": bank.dim,
        "dtype": bank.dtype.name,
        "videos": list(bank.videos),
        "item_videos": [numbers[video] for video in videos],
        "item_seconds": np.asarray(seconds).tolist(),
        "source": dict(source),
    }
    write_json(folder / SETTINGS, content)
    return Bank.open([folder])


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def _check_finite(
    bank: Bank,
    videos: Sequence[str],
    seconds: Sequence[int] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    features: np.ndarray,
) -> None:
    for start in range(0, len(features), _CHUNK):
        finite = np.isfinite(features[start : start + _CHUNK]).all(1)
        if not finite.all():
            row = start + int(finite.argmin())
            item = int(np.searchsorted(np.cumsum(counts), row, side="right"))
            raise DataError(
                f"{bank.name}: a feature of video {videos[item]!r}, second {seconds[item]}, is not a finite "
                f"{bank.dtype} number"
            )


def _settings(bank: Bank, first: Bank) -> list[tuple[str, Any, Any]]:
    """Return (name, value of a bank, value of another one) of the settings in which banks must agree."""
    keys = sorted((bank.source.keys() | first.source.keys()) - set(INFORMATION))
    return [
        ("dim", bank.dim, first.dim),
        ("dtype", bank.dtype.name, first.dtype.name),
        *((f"source.{key}", bank.source.get(key), first.source.get(key)) for key in keys),
    ]


def _open(folder: Path) -> Bank:
    """Open one bank."""
    path = folder / SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"bank {folder}: no {SETTINGS} there; expected a folder of a bank") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise DataError(f"{path}: not the settings of a bank; expected kind = {KIND!r}")
    names, videos, seconds, source = (content.get(key) for key in ("videos", "item_videos", "item_seconds", "source"))
    is_known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if (
        not is_known
        or not _are_numbers(videos, len(names))
        or not _are_numbers(seconds)
        or not isinstance(source, dict)
    ):
        raise DataError(f"{path}: damaged (its items or its source are not what write_bank writes)")
    features, counts = _mapped(folder / FEATURES), _mapped(folder / COUNTS)
    if counts.ndim != 1:
        raise DataError(f"{folder / COUNTS}: holds {list(counts.shape)}, expected one number per item")
    bank = Bank.from_arrays([names[video] for video in videos], seconds, counts, features, source, f"bank {folder}")
    if (content.get("dim"), content.get("dtype")) != (bank.dim, bank.dtype.name):
        raise DataError(f"{folder / FEATURES}: {bank.dtype} {list(features.shape)}, not what {SETTINGS} says")
    return bank


def _are_numbers(values: Any, below: int = 1 << 31) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < below for value in values)


def _mapped(path: Path) -> np.ndarray:
    """Return a memory-mapped array."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # damaged bytes provoke any error of numpy
        raise DataError(f"{path}: damaged ({' '.join(str(error).split())})") from None
    return array

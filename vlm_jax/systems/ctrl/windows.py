"""Sliding windows over a video, what surrounds them, and which of them show a moment: rules of CTRL, numpy alone.

Frames are counted from 1, and a window is its first and last frame. Reference: PaddlePaddle/models release/1.8,
`PaddleCV/video/reader/tall_reader.py`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vlm_jax.features import Settings

# From the right: a video's name may itself hold underscores. What follows the last frame is a file's ending.
_NAME = re.compile(r"(?P<video>.+)_(?P<start>\d+)_(?P<end>\d+)(\.[A-Za-z]\w*)?")

EXACT, NEAREST = "exact", "nearest"
CONTEXTS = (EXACT, NEAREST)


class Span(NamedTuple):
    """A stretch of a video, named like `s13-d21.avi_1117_1181` or, as a file of features, with `.npy` behind it."""

    video: str
    start: int
    end: int


class Windows(NamedTuple):
    """The windows of a folder.

    Attributes:
      names: Of their files, sorted.
      videos: Whose they are.
      spans: int64 `[N, 2]`.
      skipped: What else lies in the folder.
    """

    names: list[str]
    videos: list[str]
    spans: np.ndarray
    skipped: list[str]


def parse(name: str) -> Span | None:
    """What a window's or moment's name says; None where it is no such name."""
    match = _NAME.fullmatch(name)
    return Span(match["video"], int(match["start"]), int(match["end"])) if match else None


def window_files(names: Iterable[str]) -> Windows:
    """The windows among the names of a folder's files."""
    kept, spans, skipped = [], [], []
    for name in sorted(names):
        span = parse(name) if name.endswith(".npy") else None
        (kept if span else skipped).append(name)
        if span:
            spans.append(span)
    return Windows(
        kept,
        [span.video for span in spans],
        np.array([span[1:] for span in spans], np.int64).reshape(-1, 2),
        skipped,
    )


def sliding_windows(num_frames: int, lengths: Sequence[int] = (64, 128, 256, 512), overlap: float = 0.8) -> np.ndarray:
    """The windows of a video: int64 `[N, 2]`, one length after the other.

    From frame 1 on, every int(length * (1 - overlap)) frames, as long as the end stays within the video. This gives as
    many windows as TACoS's released features have files.

    Raises:
      ValueError: for an overlap that leaves no step.
    """
    found = []
    for length in lengths:
        step = int(length * (1 - overlap))
        if step < 1:
            raise ValueError(f"windows of {length} frames with an overlap of {overlap} do not move on")
        starts = np.arange(1, num_frames - length + 1, step, dtype=np.int64)
        found.append(np.stack([starts, starts + length], 1))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def context(windows: np.ndarray, count: int = 1, size: int = 128, mode: str = EXACT) -> tuple[np.ndarray, np.ndarray]:
    """The windows that stand for what comes before and after each window of a video.

    The k-th stretch before a window is the `size` frames that end k * size before it; the same behind it. `exact`
    takes the window with just these frames, else what the stretch nearer by took, at first the window itself: with
    the steps of `sliding_windows` there is hardly ever one. `nearest` takes the window whose boundaries are nearest.

    Args:
      windows: `[N, 2]`, all of one video.
      count: K, stretches on each side.
      size: Frames of a stretch.
      mode: One of `CONTEXTS`.

    Returns:
      Two arrays int64 `[N, K]` of rows of `windows`: before, after.
    """
    own = np.arange(len(windows))
    place = {tuple(window): row for row, window in enumerate(windows.tolist())}
    sides = []
    for edge, sign in ((0, -1), (1, 1)):
        columns, last = [], own
        for number in range(count):
            near = windows[:, edge] + sign * size * number
            far = near + sign * size
            wanted = np.stack([np.minimum(near, far), np.maximum(near, far)], 1)
            if mode == NEAREST:
                last = _nearest(windows, wanted)
            else:
                found = [place.get(tuple(window), -1) for window in wanted.tolist()]
                last = np.where(np.array(found, np.int64) >= 0, found, last)
            columns.append(last)
        sides.append(np.stack(columns, 1) if columns else own[:, None])
    return sides[0].astype(np.int64), sides[1].astype(np.int64)


def window_means(features: np.ndarray, centres: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Features of windows from those of a video: the mean of the rows whose middle a window holds, or the nearest one.

    Args:
      features: `[N, C]`.
      centres: `[N]`, the middle of each row, ascending.
      spans: `[W, 2]` in the same unit; the end is not part of a window.

    Returns:
      float32 `[W, C]`.
    """
    first, last = (np.searchsorted(centres, spans[:, side], side="left") for side in (0, 1))
    sums = np.concatenate([np.zeros((1, features.shape[1])), np.cumsum(features, 0, dtype=np.float64)])
    means = (sums[last] - sums[first]) / np.maximum(last - first, 1)[:, None]
    empty = np.flatnonzero(last == first)
    nearest = np.abs(spans[empty].mean(1)[:, None] - centres[None]).argmin(1)
    means[empty] = features[nearest]
    return means.astype(np.float32)


def feature_windows(
    features: np.ndarray,
    settings: Settings,
    fps: float,
    lengths: Sequence[int],
    overlap: float,
    num_frames: int = 0,
) -> tuple[int, np.ndarray, np.ndarray]:
    """Cut a video's features into sliding windows.

    Args:
      features: `[N, C]`, of the whole video.
      settings: What they were made with.
      fps: Frames per second in which windows are counted.
      lengths: Lengths of windows, frames.
      overlap: Share of a window that its neighbour overlaps.
      num_frames: Frames of the video; 0 takes what the features reach.

    Returns:
      The number of frames, the windows int64 `[W, 2]` in the order of released files, and their features float32
      `[W, C]`. W is 0 for a video that is shorter than a window.
    """
    # The last row may be padded with black frames: what the one before it shows is surely there.
    seconds = settings.seconds(max(0, len(features) - 2))[1]
    count = num_frames or int(seconds * fps)
    spans = sliding_windows(count, lengths, overlap)
    if not len(spans):
        return count, spans, np.zeros((0, features.shape[1]), np.float32)
    centres = (np.arange(len(features)) * settings.stride + settings.window / 2) / settings.fps * fps
    names = [f"{start}_{end}.npy" for start, end in spans.tolist()]
    spans = spans[sorted(range(len(names)), key=names.__getitem__)]
    return count, spans, window_means(features.astype(np.float32), centres, spans)


def visual_features(features: np.ndarray, rows: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean of the context before, own, mean of the context after: `[B, 3 C]`.

    Args:
      features: `[N, C]`.
      rows: `[B]` of the features.
      before: `[N, K]` rows, as `context` gives them.
      after: The same.
    """
    left, right = (features[side[rows]].mean(1, dtype=features.dtype) for side in (before, after))
    return np.concatenate([left, features[rows], right], 1)


def overlap_and_outside(windows: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well windows fit moments, `[..., 2]` against `[..., 2]`, float64.

    Returns:
      The intersection over that from the first start to the last end, less than 0 where they are apart; and the share
      of the window that lies outside the moment. NaN for 0 / 0.
    """
    windows, moments = np.asarray(windows, np.float64), np.asarray(moments, np.float64)
    last_start = np.maximum(windows[..., 0], moments[..., 0])
    first_end = np.minimum(windows[..., 1], moments[..., 1])
    hull = np.maximum(windows[..., 1], moments[..., 1]) - np.minimum(windows[..., 0], moments[..., 0])
    length = windows[..., 1] - windows[..., 0]
    shared = first_end - last_start
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / hull, (length - shared) / length


def select_pairs(
    window_videos: Sequence[str],
    windows: np.ndarray,
    moment_videos: Sequence[str],
    moments: np.ndarray,
    *,
    min_overlap: float = 0.5,
    max_outside: float = 0.15,
) -> np.ndarray:
    """Which windows train with which sentences: int64 `[P, 2]`, row of the window and of the sentence.

    More than `min_overlap` and less than `max_outside`, see `overlap_and_outside`; windows in their order, and for
    each its sentences in theirs.

    Args:
      window_videos: N names.
      windows: `[N, 2]`.
      moment_videos: M names, one a sentence.
      moments: `[M, 2]`, what each sentence describes.
      min_overlap: Not reached by just as much.
      max_outside: The same.
    """
    rows_of: dict[str, list[int]] = {}
    for row, video in enumerate(window_videos):
        rows_of.setdefault(video, []).append(row)
    sentences_of: dict[str, list[int]] = {}
    for row, video in enumerate(moment_videos):
        sentences_of.setdefault(video, []).append(row)
    found = [np.zeros((0, 2), np.int64)]
    for video, sentences in sentences_of.items():
        rows, columns = np.array(rows_of.get(video, []), np.int64), np.array(sentences)
        overlap, outside = overlap_and_outside(windows[rows][:, None], moments[columns][None])
        chosen = np.nonzero((overlap > min_overlap) & (outside < max_outside))
        found.append(np.stack([rows[chosen[0]], columns[chosen[1]]], 1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _nearest(windows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of the windows whose two boundaries together are nearest, the first of equals."""
    rows = np.empty(len(wanted), np.int64)
    for begin in range(0, len(wanted), 256):  # a long video has too many pairs for one array
        distance = np.abs(wanted[begin : begin + 256, None] - windows[None]).sum(-1)
        rows[begin : begin + 256] = distance.argmin(1)
    return rows

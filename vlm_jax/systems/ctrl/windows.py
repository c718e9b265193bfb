"""Sliding windows of CTRL: names, positions, context, features, and pairs with moments (numpy).

Frames are counted from 1, and a window is given by its first and last frame. Reference: PaddlePaddle/models
release/1.8, `PaddleCV/video/reader/tall_reader.py`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vlm_jax.features import Settings

# Greedy, since a video's name may itself hold underscores. The last group is the ending of a file.
_NAME = re.compile(r"(?P<video>.+)_(?P<start>\d+)_(?P<end>\d+)(\.[A-Za-z]\w*)?")

EXACT, NEAREST = "exact", "nearest"
CONTEXTS = (EXACT, NEAREST)


class Span(NamedTuple):
    """Stretch of a video in frames, named like `s13-d21.avi_1117_1181`, with `.npy` appended for a file of features."""

    video: str
    start: int
    end: int


class Windows(NamedTuple):
    """Windows in a folder of features.

    Attributes:
      names: File names of the windows, sorted.
      videos: Name of each window's video.
      spans: First and last frame of each window, int64 `[N, 2]`.
      skipped: Names of all other files in the folder.
    """

    names: list[str]
    videos: list[str]
    spans: np.ndarray
    skipped: list[str]


def parse(name: str) -> Span | None:
    """Return the span in the name of a window or moment; None if it is not such a name."""
    match = _NAME.fullmatch(name)
    return Span(match["video"], int(match["start"]), int(match["end"])) if match else None


def window_files(names: Iterable[str]) -> Windows:
    """Return the windows among the file names of a folder."""
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
    """Return the sliding windows of a video: int64 `[N, 2]`, one length after the other.

    Windows begin at frame 1 and then every int(length * (1 - overlap)) frames, as long as they end within the video.
    This gives the number of files in the released features of TACoS.

    Raises:
      ValueError: If the overlap leaves a step of 0 frames.
    """
    found = []
    for length in lengths:
        step = int(length * (1 - overlap))
        if step < 1:
            raise ValueError(f"windows of {length} frames with an overlap of {overlap} have a step of 0 frames")
        starts = np.arange(1, num_frames - length + 1, step, dtype=np.int64)
        found.append(np.stack([starts, starts + length], 1))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def context(windows: np.ndarray, count: int = 1, size: int = 128, mode: str = EXACT) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows that represent the context before and after each window of a video.

    Stretch k (from 0) before a window consists of the `size` frames that end k * size frames before it; stretches after
    it are symmetric. `exact` takes the window with exactly these frames. If there is none, it takes the window of the
    stretch that is one nearer, and for k = 0 the window itself. With the steps of `sliding_windows` an exact window is
    rare. `nearest` takes the window whose boundaries are nearest.

    Args:
      windows: All windows of one video, `[N, 2]`.
      count: Number of stretches on each side, K.
      size: Number of frames per stretch.
      mode: One of `CONTEXTS`.

    Returns:
      Rows of `windows` before and after, two arrays int64 `[N, K]`.
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
    """Return the features of windows: the mean of the rows whose middle lies in a window, or the nearest row.

    Args:
      features: Features of the video, `[N, C]`.
      centres: Middle of each row, ascending, `[N]`.
      spans: Start and end of each window in the same unit, `[W, 2]`; the end is exclusive.

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
      features: Features of the whole video, `[N, C]`.
      settings: Settings that the features were made with.
      fps: Frames per second in which windows are counted.
      lengths: Lengths of windows, frames.
      overlap: Share of a window that its neighbour overlaps.
      num_frames: Number of frames of the video; 0 for as many as the features cover.

    Returns:
      The number of frames, the windows int64 `[W, 2]` in the order of the released files, and their features float32
      `[W, C]`. W is 0 for a video that is shorter than a window.
    """
    # The last row may be padded with black frames; the row before it covers real frames only.
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
    """Return mean context before, own features and mean context after of windows: `[B, 3 C]`.

    Args:
      features: Features of all windows of a video, `[N, C]`.
      rows: Rows of the windows wanted, `[B]`.
      before: Rows of the context before each window, `[N, K]`, from `context`.
      after: Rows of the context after each window, `[N, K]`.
    """
    left, right = (features[side[rows]].mean(1, dtype=features.dtype) for side in (before, after))
    return np.concatenate([left, features[rows], right], 1)


def overlap_and_outside(windows: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return overlap and outside share of windows `[..., 2]` and moments `[..., 2]`, float64 `[...]` each.

    Returns:
      The intersection over the hull, negative where window and moment are apart, and the share of the window that lies
      outside the moment. NaN for 0 / 0.
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
    """Return the pairs of windows and sentences of the same video that fit well enough for training.

    Args:
      window_videos: Name of the video of each of N windows.
      windows: First and last frame of each window, `[N, 2]`.
      moment_videos: Name of the video of each of M sentences.
      moments: First and last frame of each sentence's moment, `[M, 2]`.
      min_overlap: Overlap that a pair must exceed, see `overlap_and_outside`.
      max_outside: Share of the window outside the moment that a pair must stay below.

    Returns:
      Rows of window and sentence, int64 `[P, 2]`, sorted by window, then by sentence.
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
    """Return the rows of the windows with the smallest summed distance of both boundaries, the first of equals."""
    rows = np.empty(len(wanted), np.int64)
    for begin in range(0, len(wanted), 256):  # a long video has too many pairs for one array
        distance = np.abs(wanted[begin : begin + 256, None] - windows[None]).sum(-1)
        rows[begin : begin + 256] = distance.argmin(1)
    return rows

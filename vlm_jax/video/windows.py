"""Windows of a video, cut while it is decoded, so that memory does not depend on its length."""

import collections
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np

from vlm_jax.video import decode

CROPS = ("center", "none")
"""Crops of a frame: `center`, its largest central square, and `none`, the whole frame squeezed into a square."""


def window_batches(
    path: str | Path,
    *,
    window: int,
    stride: int,
    fps: float,
    size: int,
    crop: str = "center",
    batch_size: int = 8,
    threads: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of the windows of a video, the last one padded.

    Window i begins at frame i * stride, counted at `fps` from the video's beginning. The last window is the first one
    that holds the last frame. Frames beyond the video are black.

    Args:
      path: Video file.
      window: Number of frames per window, T.
      stride: Number of frames from one window to the next.
      fps: Frames per second.
      size: Height and width of a frame, S, pixels.
      crop: One of `CROPS`.
      batch_size: Number of windows per batch, B.
      threads: Number of decoder threads, 0 for one per core.

    Yields:
      `video` uint8 `[B, T, S, S, 3]`; `mask` int32 `[B]`, 0 for padding; `index` int32 `[B]`, the window's number.

    Raises:
      VideoError: If the file cannot be used, or has no frame at this rate.
    """
    filters = decode.square_crop(size) if crop == "center" else f"scale={size}:{size}"
    frames = decode.stream_frames(path, fps=Fraction(str(fps)), filters=filters, threads=threads)
    count = 0
    with closing(frames):
        batch: dict[str, np.ndarray] = {}
        for number, held in enumerate(_windows(frames, window, stride)):
            place = number % batch_size
            if place == 0:
                if batch:
                    yield batch
                batch = {
                    "video": np.zeros((batch_size, window, size, size, 3), np.uint8),
                    "mask": np.zeros(batch_size, np.int32),
                    "index": np.zeros(batch_size, np.int32),
                }
            batch["video"][place, : len(held)] = held
            batch["mask"][place], batch["index"][place] = 1, number
            count += 1
        if not count:
            raise decode.VideoError(path, "no frames", f"shorter than a frame at {fps} frames per second")
        yield batch


def _windows(frames: Iterable[np.ndarray], window: int, stride: int) -> Iterator[list[np.ndarray]]:
    """Yield windows of up to `window` frames that begin every `stride` frames, until one holds the last frame."""
    held: collections.deque[np.ndarray] = collections.deque(maxlen=window)
    count, end = 0, window
    for count, frame in enumerate(frames, start=1):
        held.append(frame)
        if count == end:
            yield list(held)
            end += stride
    begin = end - window
    if begin < count and (count > end - stride or begin == 0):
        yield list(held)[begin - count :]

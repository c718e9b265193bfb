"""Bilinear resizing of frames without antialiasing, with the arithmetic of OpenCV (mmaction2) and of PyTorch.

`resize` follows `cv2.resize(..., interpolation=cv2.INTER_LINEAR)` on bytes (opencv/opencv,
modules/imgproc/src/resize.cpp): half-pixel centres, weights in units of 1/2048, and two roundings. `interpolate` is
`torch.nn.functional.interpolate(..., mode="bilinear", align_corners=False)` on floats.
"""

import numpy as np

_ONE = 2048


Window = tuple[int, int, int, int]
"""Top, left, height and width of the part of a result to compute, pixels."""


def resize(frames: np.ndarray, height: int, width: int, window: Window | None = None) -> np.ndarray:
    """Return frames uint8 `[T, H, W, C]` resized to `height` x `width` pixels, or a window of the result.

    Args:
      frames: Frames to resize.
      height: Height of the whole result, pixels.
      width: Width of the whole result, pixels.
      window: Top, left, height and width of the part to compute, pixels; None for all.
    """
    top, left, rows, columns = window or (0, 0, height, width)
    if frames.shape[1:3] == (height, width):
        return np.ascontiguousarray(frames[:, top : top + rows, left : left + columns])
    above, v = _places(frames.shape[1], height, top, rows)
    first, u = _places(frames.shape[2], width, left, columns)
    # Beyond the edge, OpenCV repeats rows with their weights, but gives the edge column the whole weight.
    u = np.where((first < 0) | (first >= frames.shape[2] - 1), 0, u)
    above, below = (np.clip(above + step, 0, frames.shape[1] - 1) for step in (0, 1))
    first, second = (np.clip(first + step, 0, frames.shape[2] - 1) for step in (0, 1))
    # Rows and columns that the window needs; every pixel is first interpolated along its row.
    low, high = int(above.min()), int(below.max()) + 1
    channels = frames.shape[3]
    lanes = np.arange(channels)
    flat = frames[:, low:high].reshape(len(frames), high - low, -1)
    near = flat.take((first[:, None] * channels + lanes).reshape(-1), axis=2).astype(np.int32)
    far = flat.take((second[:, None] * channels + lanes).reshape(-1), axis=2).astype(np.int32)
    share = np.repeat(u, channels)
    far -= near
    far *= share
    near *= _ONE
    near += far
    near >>= 4
    upper = near.take(above - low, axis=1)
    lower = near.take(below - low, axis=1)
    upper *= (_ONE - v)[:, None]
    lower *= v[:, None]
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper.astype(np.uint8).reshape(len(frames), rows, columns, channels)


def interpolate(frames: np.ndarray, height: int, width: int, window: Window | None = None) -> np.ndarray:
    """Return frames `[T, H, W, C]` resized to `height` x `width` pixels, or a window of the result, as float32.

    Args:
      frames: Frames to resize, of any type.
      height: Height of the whole result, pixels.
      width: Width of the whole result, pixels.
      window: Part to compute; None for all.
    """
    top, left, rows, columns = window or (0, 0, height, width)
    if frames.shape[1:3] == (height, width):
        return frames[:, top : top + rows, left : left + columns].astype(np.float32)
    above, below, v = _neighbours(frames.shape[1], height, top, rows)
    first, second, u = _neighbours(frames.shape[2], width, left, columns)
    low, high, channels = int(above.min()), int(below.max()) + 1, frames.shape[3]
    flat = frames[:, low:high].reshape(len(frames), high - low, -1)
    lanes = np.arange(channels)
    near, far = (
        flat.take((places[:, None] * channels + lanes).reshape(-1), axis=2).astype(np.float32)
        for places in (first, second)
    )
    far -= near
    far *= np.repeat(u, channels)
    near += far
    upper = near.take(above - low, axis=1)
    lower = near.take(below - low, axis=1)
    lower -= upper
    lower *= v[:, None]
    upper += lower
    return upper.reshape(len(frames), rows, columns, channels)


def _neighbours(size: int, target: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for `count` target positions from `start` on both source positions, and the second one's weight."""
    scale = np.float32(size / target)
    place = np.maximum(
        scale * (np.arange(start, start + count, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0
    )
    before = np.minimum(place.astype(np.int64), size - 1)
    return before, np.minimum(before + 1, size - 1), place - before.astype(np.float32)


def _places(size: int, target: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for `count` target positions from `start` on the source position before each, and the next one's weight.

    Positions may lie one beyond the edges. Weights are int32 `[count]`, in units of 1/2048.
    """
    place = ((np.arange(start, start + count) + 0.5) * (1.0 / (target / size)) - 0.5).astype(np.float32)
    before = np.floor(place)
    return before.astype(np.int64), np.rint((place - before) * np.float32(_ONE)).astype(np.int32)

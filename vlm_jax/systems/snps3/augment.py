"""RandAugment of videos: random changes of colour and geometry, the same for all frames (numpy only).

Source: facebookresearch/pytorchvideo, transforms/rand_augment.py and augmentations.py, whose operations are those of
pytorch/vision (transforms/functional_tensor.py) on uint8. Two of their slips on uint8 are kept, because released
weights were trained with them: the fill value 0.5 is black, and solarizing inverts all but black.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

LEVELS = 10
"""Largest magnitude."""
FILL = 0.5
"""Value of pixels that geometric operations uncover, from 0 to 255."""
_THIRTEENTHS = np.rint(np.arange(13 * 255 + 1, dtype=np.float32) / 13).astype(np.uint8)
_GREY = np.array([0.2989, 0.587, 0.114], np.float32)


def augment(
    video: np.ndarray,
    rng: np.random.Generator,
    operations: int = 2,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    probability: float = 0.5,
) -> np.ndarray:
    """Return frames after random operations, uint8 `[N, H, W, 3]`.

    Args:
      video: Frames, uint8 `[N, H, W, 3]`.
      rng: Generator of the example.
      operations: Number of different operations that are drawn.
      magnitude: Mean strength of an operation, from 0 to 10.
      deviation: Standard deviation of the strength.
      probability: Probability that an operation that was drawn is applied.
    """
    names = list(OPERATIONS)
    for number in rng.choice(len(names), min(operations, len(names)), replace=False):
        if rng.random() <= probability:
            level = min(max(rng.normal(magnitude, deviation), 0.0), LEVELS) / LEVELS
            video = OPERATIONS[names[number]](video, level if rng.random() > 0.5 else -level)
    return video


def _blend(video: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
    """Mix frames with others; the result is truncated."""
    mixed = video * np.float32(factor)
    mixed += np.float32(1 - factor) * np.asarray(other, np.float32)
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def _grey(video: np.ndarray) -> np.ndarray:
    return (video @ _GREY).astype(np.uint8)[..., None]


def brightness(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames mixed with black."""
    return _blend(video, 0.0, 1 + 0.9 * level)


def contrast(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames mixed with the mean grey value of each."""
    return _blend(video, _grey(video).mean((1, 2, 3), np.float32, keepdims=True), 1 + 0.9 * level)


def saturation(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames mixed with grey ones."""
    return _blend(video, _grey(video), 1 + 0.9 * level)


def sharpness(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames mixed with blurred ones, whose edges are not blurred."""
    height, width = video.shape[1:3]
    if min(height, width) <= 2:
        return video
    wide = video.astype(np.uint16)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    blurred = video.copy()
    blurred[:, 1:-1, 1:-1] = _THIRTEENTHS[total]
    return _blend(video, blurred, 1 + 0.9 * level)


def auto_contrast(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames whose colours are stretched to the whole range, each frame and colour by itself."""
    del level
    # One axis after the other is much faster than both at once.
    low = video.min(1).min(1)[:, None, None].astype(np.float32)
    high = video.max(1).max(1)[:, None, None].astype(np.float32)
    flat = low == high
    scale = np.float32(255) / np.where(flat, 255, high - low)
    return np.clip((video - np.where(flat, 0, low)) * scale, 0, 255).astype(np.uint8)


def equalize(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames whose colours are spread evenly, each frame and colour by itself."""
    del level
    made = np.empty_like(video)
    for frame, out in zip(video, made, strict=True):
        for colour in range(3):
            plane = frame[..., colour]
            counts = np.bincount(plane.reshape(-1), minlength=256)
            step = int(counts[: plane.max()].sum()) // 255
            if not step:
                out[..., colour] = plane
                continue
            table = np.concatenate([[0], (np.cumsum(counts) + step // 2)[:-1] // step]).clip(0, 255).astype(np.uint8)
            out[..., colour] = table[plane]
    return made


def invert(video: np.ndarray, level: float) -> np.ndarray:
    """Return negatives."""
    del level
    return 255 - video


def posterize(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames with 4 to 0 bits per colour."""
    bits = 4 - int(4 * abs(level))
    return video & np.uint8(256 - (1 << (8 - bits)) if bits else 0)


def solarize(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames whose values from a threshold on, between 0 and 1 of 255, are inverted."""
    return np.where(video >= 1 - abs(level), 255 - video, video)


def rotate(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames rotated by up to 30 degrees."""
    angle = math.radians(30 * level)
    cosine, sine = math.cos(angle), math.sin(angle)
    return _affine(video, (cosine, -sine, 0.0, sine, cosine, 0.0))


def shear_x(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames sheared along their rows."""
    return _affine(video, (1.0, 0.3 * level, 0.3 * level * video.shape[1] / 2, 0.0, 1.0, 0.0))


def shear_y(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames sheared along their columns."""
    return _affine(video, (1.0, 0.0, 0.0, 0.3 * level, 1.0, 0.3 * level * video.shape[2] / 2))


def translate_x(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames shifted sideways by a share of their width."""
    return _affine(video, (1.0, 0.0, 0.45 * level * video.shape[2], 0.0, 1.0, 0.0))


def translate_y(video: np.ndarray, level: float) -> np.ndarray:
    """Return frames shifted up or down by a share of their height."""
    return _affine(video, (1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * level * video.shape[1]))


def _affine(video: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Return frames seen through an affine map from target to source positions, counted from the centre; bilinear."""
    height, width = video.shape[1:3]
    y, x = (np.arange(size, dtype=np.float32) - (size - 1) / 2 for size in (height, width))
    a, b, c, d, e, f = (np.float32(each) for each in matrix)
    column = a * x + (b * y)[:, None] + (c + np.float32((width - 1) / 2))
    row = d * x + (e * y)[:, None] + (f + np.float32((height - 1) / 2))
    left, top = np.floor(column).astype(np.int32), np.floor(row).astype(np.int32)
    u, v = column - left, row - top
    flat = video.reshape(len(video), height * width, 3)
    total, weights = np.zeros((len(video), height * width, 3), np.float32), np.zeros((height, width), np.float32)
    for down, share_down in ((0, 1 - v), (1, v)):
        for right, share_right in ((0, 1 - u), (1, u)):
            share = share_down * share_right
            if not share.any():
                continue
            at_row, at_column = top + down, left + right
            share = share * ((at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width))
            place = at_row.clip(0, height - 1) * width + at_column.clip(0, width - 1)
            total += flat.take(place.reshape(-1), axis=1) * share.reshape(-1, 1)
            weights += share
    total += (1 - weights).reshape(-1, 1) * np.float32(FILL)
    return np.rint(total).astype(np.uint8).reshape(video.shape)


OPERATIONS: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "sharpness": sharpness,
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "rotate": rotate,
    "posterize": posterize,
    "solarize": solarize,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
"""Operations by name: functions of frames and a level from -1 to 1."""

"""What the networks see of frames: resizing, crops, and padding of pictures of different sizes (numpy only).

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp and antmmf/structures/nested_tensor.py; facebookresearch/
pytorchvideo, transforms/functional.py (`short_side_scale`). The reference standardises before it resizes, which gives
the same numbers: bilinear weights sum to 1. Settings are `config.frames`.
"""

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.systems.snps3.augment import augment
from vlm_jax.video.resize import interpolate

SMALLEST, STEP = 224, 32
"""Smallest longer side that is drawn at random, and the step to the next one, pixels."""


def long_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width with the longer side `side` and the same aspect ratio, truncated, at least one pixel."""
    longest = max(height, width)
    return max(height * side // longest, 1), max(width * side // longest, 1)


def short_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width with the shorter side `side` and the same aspect ratio, the other one truncated."""
    if width < height:
        return int(height / width * side), side
    return side, int(width / height * side)


def random_scales(max_size: int) -> list[int]:
    """Return the longer sides that training draws from, pixels: multiples of 32 from 224 on, or `max_size` alone."""
    return list(range(SMALLEST, max_size + 1, STEP)) or [max_size]


def shown_size(height: int, width: int, frames: ConfigDict) -> tuple[int, int]:
    """Return height and width of what evaluation shows of a frame, pixels, without padding."""
    if frames.form == "crop":
        return frames.size, frames.size
    return long_side_size(height, width, frames.max_size)


def evaluation_view(video: np.ndarray, frames: ConfigDict, strict: bool = False) -> np.ndarray:
    """Return what evaluation shows of frames: the centre, or the whole frame with its longer side `max_size`.

    Args:
      video: Frames, uint8 `[N, H, W, 3]`.
      frames: `config.frames`.
      strict: If true, the result is float32 as resizing gives it; else it is rounded to uint8.
    """
    size = video.shape[1:3]
    if frames.form == "whole":
        return _shown(interpolate(video, *long_side_size(*size, frames.max_size)), strict)
    height, width = short_side_size(*size, frames.evaluation_short_side)
    # Python rounds halves to even numbers, as the reference's crop does.
    top, left = (round((side - frames.size) / 2) for side in (height, width))
    return _shown(interpolate(video, height, width, (top, left, frames.size, frames.size)), strict)


def training_view(video: np.ndarray, frames: ConfigDict, rng: np.random.Generator, strict: bool = False) -> np.ndarray:
    """Return what training shows of frames: an augmented random crop, or whole frames of a random size.

    Args:
      video: Frames, uint8 `[N, H, W, 3]`; all of them are changed alike.
      frames: `config.frames`.
      rng: Generator of the example.
      strict: If true, the result is float32 as resizing gives it; else it is rounded to uint8.
    """
    size = video.shape[1:3]
    if frames.form == "whole":
        scales = random_scales(frames.max_size) if frames.random_scale else [frames.max_size]
        return _shown(interpolate(video, *long_side_size(*size, scales[rng.integers(len(scales))])), strict)
    video = augment(video, rng, **frames.augment)
    height, width = short_side_size(*size, int(rng.integers(frames.short_side[0], frames.short_side[1] + 1)))
    top, left = (int(rng.integers(side - frames.size + 1)) for side in (height, width))
    shown = _shown(interpolate(video, height, width, (top, left, frames.size, frames.size)), strict)
    return np.ascontiguousarray(shown[:, :, ::-1]) if rng.random() < frames.flip else shown


def on_canvas(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return frames `[N, h, w, 3]` in the top left corner of black ones, `[N, height, width, 3]`."""
    if video.shape[1:3] == (height, width):
        return video
    canvas = np.zeros((len(video), height, width, 3), video.dtype)
    canvas[:, : video.shape[1], : video.shape[2]] = video
    return canvas


def _shown(video: np.ndarray, strict: bool) -> np.ndarray:
    return video if strict else np.rint(video).astype(np.uint8)

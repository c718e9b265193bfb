"""Spatial augmentation of clips and boxes, and resizing in evaluation.

Reference: open-mmlab/mmaction2, mmaction/datasets/transforms/processing.py (`RandomRescale`, `RandomCrop`, `Flip`,
`Resize`). Boxes are x1, y1, x2, y2 in pixels, float32. docs/lfb.md lists what differs from what one would expect.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from vlm_jax.video.resize import resize


class View(NamedTuple):
    """Part of a frame that the network sees.

    Attributes:
      height: Height of the resized frame, pixels.
      width: Width of the resized frame, pixels.
      top: First row of the crop in the resized frame.
      left: First column of the crop in the resized frame.
      rows: Height of the crop, pixels.
      columns: Width of the crop, pixels.
      cropped: If true, boxes are cut at the crop's edges.
      flip: If true, the crop is mirrored.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int
    cropped: bool = False
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation in training.

    Attributes:
      short_side: Smallest and largest shorter side of the resized frame, inclusive, pixels.
      size: Height and width of the crop, pixels.
      flip: Probability that a clip is mirrored.
    """

    short_side: tuple[int, int] = (256, 320)
    size: int = 256
    flip: float = 0.5

    def draw(self, rng: np.random.Generator, height: int, width: int) -> View:
        """Draw the view of a clip whose frames have `height` x `width` pixels.

        The largest offset of the crop is never drawn, as in the reference.
        """
        short, long = self.short_side
        height, width = resized_size(height, width, int(rng.integers(short, long + 1)))
        # One draw per number, whatever the size, so that the numbers that follow do not depend on the size.
        u, w, mirrored = rng.random(3)
        left, top = int(u * max(width - self.size, 1)), int(w * max(height - self.size, 1))
        return View(height, width, top, left, self.size, self.size, True, bool(mirrored < self.flip))


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return height and width with the shorter side `short_side` and the same aspect ratio, rounded."""
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def whole_view(height: int, width: int, short_side: int) -> View:
    """Return the view of evaluation: the whole frame with the shorter side `short_side`."""
    height, width = resized_size(height, width, short_side)
    return View(height, width, 0, 0, height, width)


def view_frames(frames: np.ndarray, view: View) -> np.ndarray:
    """Return the view of frames: uint8 `[T, H, W, 3]` -> `[T, rows, columns, 3]`."""
    seen = resize(frames, view.height, view.width, (view.top, view.left, view.rows, view.columns))
    return np.ascontiguousarray(seen[:, :, ::-1]) if view.flip else seen


def view_boxes(boxes: np.ndarray, height: int, width: int, view: View) -> np.ndarray:
    """Return boxes in the pixels of a view, float32 `[N, 4]`.

    A box outside of the crop keeps its place in the list and loses its area. A cropped box ends at the last pixel's
    index, but mirroring takes the width itself.

    Args:
      boxes: Boxes as shares of the frame, float64 `[N, 4]`.
      height: Height of the original frame, pixels.
      width: Width of the original frame, pixels.
      view: View of the frame.
    """
    scale = np.array([view.width / width, view.height / height] * 2, np.float32)
    seen = (boxes * np.array([width, height] * 2)).astype(np.float32) * scale
    if view.cropped:
        corner = np.array([view.left, view.top] * 2, np.float32)
        last = np.array([view.columns - 1, view.rows - 1] * 2, np.float32)
        seen = np.clip(seen - corner, np.float32(0), last)
    if view.flip:
        seen[:, [0, 2]] = np.float32(view.columns) - seen[:, [2, 0]]
    return seen

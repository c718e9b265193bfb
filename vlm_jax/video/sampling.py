"""Frame numbers and start times of clips; arithmetic only, no video is opened."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

HALF = Fraction(1, 2)

# Seconds kept free after the last evaluation clip (antoine77340/MIL-NCE_HowTo100M, youcook_loader.py).
CLIP_MARGIN_SECONDS = 0.4


def resample(times: Sequence[Fraction], fps: int | Fraction, length: Fraction) -> list[int]:
    """Return the index of the source frame that FFmpeg's `fps` filter shows in each output frame.

    A source frame at time t falls into slot floor(t * fps + 1/2). Output k is the last frame whose slot is at most k.
    Outputs before the first frame's slot repeat the first frame that is shown. Times exactly half-way between two slots
    are common (10, 25, 30 or 50 frames per second read at 5), so times have to be exact fractions.

    Args:
      times: Ascending times of the source frames from the seek on, seconds after the seek.
      fps: Output frames per second.
      length: End of the last source frame, seconds after the seek.

    Returns:
      floor(length * fps + 1/2) indices into `times`; none if there are no source frames.
    """
    if not times:
        return []
    slots = [_slot(time, fps) for time in times]
    chosen = []
    index = 0
    for output in range(_slot(length, fps)):
        while index + 1 < len(slots) and slots[index + 1] <= max(output, slots[0]):
            index += 1
        chosen.append(index)
    return chosen


def _slot(time: Fraction, fps: int | Fraction) -> int:
    return (Fraction(time) * Fraction(fps) + HALF).__floor__()


def clip_starts(start: float, end: float, count: int, num_seconds: float) -> np.ndarray:
    """Return start times of the clips that represent an interval in evaluation: float64 `[count]`, seconds.

    They are equally spaced from `start` to the last time at which a clip of `num_seconds` and a margin of 0.4 s still
    fit. In a shorter interval all of them are `start` (antoine77340/MIL-NCE_HowTo100M, youcook_loader.py and
    msrvtt_loader.py).
    """
    last = max(start, end - num_seconds - CLIP_MARGIN_SECONDS)
    return np.linspace(start, last, count)


def frame_windows(num_source_frames: int, count: int, num_frames: int) -> np.ndarray:
    """Return frame numbers of `count` equally spaced windows over a whole video: int64 `[count, num_frames]`, from 0.

    -1 stands for a black frame: a video with fewer than `num_frames` frames is padded at its end. Starts are truncated
    float64 values, as in the reference (antoine77340/MIL-NCE_HowTo100M, hmdb_loader.py). For some counts that is one
    frame earlier than in exact arithmetic.

    Raises:
      ValueError: If `num_source_frames` is negative.
    """
    if num_source_frames < 0:
        raise ValueError(f"num_source_frames is {num_source_frames}, expected 0 or more")
    last = max(num_source_frames - num_frames, 0)
    starts = np.linspace(0, last, count).astype(np.int64)
    frames = starts[:, None] + np.arange(num_frames)
    return np.where(frames < num_source_frames, frames, -1)

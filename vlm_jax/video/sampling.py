"""Which frames of a video make a clip, and where clips start: arithmetic only, no video is opened."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

HALF = Fraction(1, 2)

# Seconds kept free behind the last evaluation clip (antoine77340/MIL-NCE_HowTo100M, youcook_loader.py).
CLIP_MARGIN_SECONDS = 0.4


def resample(times: Sequence[Fraction], fps: int | Fraction, length: Fraction) -> list[int]:
    """Index of the source frame that FFmpeg's `fps` filter shows in each output frame.

    A source frame at time t falls into slot floor(t * fps + 1/2); output k is the last frame whose slot is at most k.
    Outputs before the first frame's slot repeat the first output that there is. Times that lie exactly half-way
    between two slots are common (10, 25, 30 or 50 frames per second read at 5), so times have to be exact fractions.

    Args:
      times: ascending times of the source frames, in seconds after the seek; frames before the seek left out.
      fps: output frames per second.
      length: seconds after the seek at which the last source frame ends.

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
    """Start times of the clips that stand for an interval in evaluation: float64 [count], in seconds.

    They are equally spaced from `start` to the last second at which a clip of `num_seconds` plus a margin of 0.4 s
    still fits; in a shorter interval all are `start` (antoine77340/MIL-NCE_HowTo100M, youcook_loader.py and
    msrvtt_loader.py).
    """
    last = max(start, end - num_seconds - CLIP_MARGIN_SECONDS)
    return np.linspace(start, last, count)


def frame_windows(num_source_frames: int, count: int, num_frames: int) -> np.ndarray:
    """Frames of `count` equally spaced windows over a whole video: int64 [count, num_frames], numbered from 0.

    -1 stands for a black frame: a video with fewer than `num_frames` frames is padded at its end. Starts are cut to
    whole numbers from float64 values, as the reference does (antoine77340/MIL-NCE_HowTo100M, hmdb_loader.py): for some
    counts that is one frame earlier than exact arithmetic would give.
    """
    if num_source_frames < 0:
        raise ValueError(f"num_source_frames is {num_source_frames}, expected 0 or more")
    last = max(num_source_frames - num_frames, 0)
    starts = np.linspace(0, last, count).astype(np.int64)
    frames = starts[:, None] + np.arange(num_frames)
    return np.where(frames < num_source_frames, frames, -1)

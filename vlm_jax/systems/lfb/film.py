"""Keyframe clips of a film, cut while it is decoded once, so that memory does not depend on its length."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.systems.lfb.augment import view_frames, whole_view
from vlm_jax.video import decode


def keyframe_clips(path: str | Path, clips: ConfigDict) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the clip around every whole second of a film: the second, and frames uint8 `[T, H, W, 3]`, RGB.

    The clip of second t has the frames that mmaction2 reads for keyframe t of a video that begins at second 0
    (mmaction/datasets/transforms/loading.py, SampleAVAFrames, in testing): frames fps * t + (i - T // 2) * interval +
    frame_shift of the film at `fps` frames per second. Numbers before the first frame and after the last one are
    replaced by these two. A film has a keyframe at every second at which it has a frame, at least one.

    Args:
      path: Video file of any rate, size and rotation.
      clips: `config.clips`.

    Raises:
      VideoError: If the file cannot be used.
    """
    offsets = (np.arange(clips.num_frames) - clips.num_frames // 2) * clips.interval + clips.frame_shift
    used = set((offsets % clips.fps).tolist())
    second, number = 0, -1
    held: dict[int, np.ndarray] = {}
    with closing(_frames(path, clips.fps)) as frames:
        for number, frame in enumerate(frames):
            if number == 0 or number % clips.fps in used:
                held[number] = _resized(frame, clips.evaluation_short_side)
            if number == second * clips.fps + max(offsets):
                yield second, np.stack([held[max(0, place)] for place in second * clips.fps + offsets])
                second += 1
                first = second * clips.fps + min(offsets)
                held = {place: kept for place, kept in held.items() if place >= max(0, first)}
        held[number] = _resized(frame, clips.evaluation_short_side)
    while second * clips.fps <= number:
        yield second, np.stack([held[place] for place in np.clip(second * clips.fps + offsets, 0, number)])
        second += 1


def _frames(path: str | Path, fps: int) -> Iterator[np.ndarray]:
    """Yield the frames of a film at a rate; its first frame if it is shorter than half a frame at this rate."""
    empty = True
    for frame in decode.stream_frames(path, fps=fps):
        empty = False
        yield frame
    if empty:
        yield from islice(decode.stream_frames(path), 1)


def _resized(frame: np.ndarray, short_side: int) -> np.ndarray:
    """Return the view of a frame that evaluation has."""
    return view_frames(frame[None], whole_view(*frame.shape[:2], short_side))[0]

"""Which frames of a video, or of a part of it, the clips show; arithmetic only.

Source: alipay/Ant-Multi-Modal-Framework, antmmf/datasets/database/video_database.py, as prj/snps3_vtp uses it.
"""

import numpy as np


def frame_indices(
    num_frames: int, clips: int, rng: np.random.Generator | None = None, frames_per_clip: int = 1
) -> np.ndarray:
    """Return the frames that clips show of a video, int64 `[clips * frames_per_clip]`, clip-major.

    The video is cut into as many intervals as there are clips; each clip shows the middle of its interval, or a random
    frame of it. A video with fewer frames than clips has one interval per frame, and clips share them. The last frame
    of an interval is never drawn, as in the reference. Further frames of a clip follow its first one; at the end of the
    video they repeat its last frame.

    Args:
      num_frames: Number of frames of the video; less than one counts as one.
      clips: Number of clips, C.
      rng: Generator of the example; None takes the middle.
      frames_per_clip: Consecutive frames of each clip, F.
    """
    length = max(num_frames, 1)
    count = min(clips, length)
    borders = np.linspace(0, length, count + 1).astype(np.int64)
    first, last = borders[:-1], borders[1:] - 1
    last = np.where(last == first, first + 1, last)
    chosen = (
        (first + last) // 2
        if rng is None
        else np.array([rng.integers(*pair) for pair in zip(first, last, strict=True)])
    )
    if count < clips:
        chosen = chosen[((count - 1) * np.arange(clips) / (clips - 1) + 0.5).astype(np.int64)]
    return np.minimum(chosen[:, None] + np.arange(frames_per_clip), length - 1).reshape(-1)


def part_of_video(start: float, end: float, frame_rate: float) -> tuple[int, int]:
    """Return the first frame of a part and its number of frames, at least one; both may lie beyond the video's end.

    Args:
      start: Start of the part, seconds.
      end: Its end, seconds.
      frame_rate: Frames per second of the video.
    """
    return int(start * frame_rate), max(int((end - start) * frame_rate), 1)

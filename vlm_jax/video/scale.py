"""Scale frames with FFmpeg's scaler, as the references do."""

import numpy as np

from vlm_jax.errors import MissingPackageError

try:
    import av
    from av.video.reformatter import Interpolation, VideoReformatter
except ImportError as error:
    raise MissingPackageError("scaling video needs PyAV: pip install 'vlm_jax[video]'") from error


def scale(frames: np.ndarray, size: int) -> np.ndarray:
    """Return frames uint8 `[T, H, W, 3]` scaled to `[T, S, S, 3]`, bicubic, with antialiasing where they shrink."""
    reformatter, method = VideoReformatter(), Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    # One colour at a time: FFmpeg would convert RGB to YUV for scaling, which is slower and less exact.
    planes = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).reshape(-1, *frames.shape[1:3])
    scaled = np.empty((len(planes), size, size), np.uint8)
    for number, plane in enumerate(planes):
        picture = av.VideoFrame.from_ndarray(plane, format="gray")
        scaled[number] = reformatter.reformat(
            picture, size, size, format="gray", interpolation=method, threads=1
        ).to_ndarray()
    return np.ascontiguousarray(scaled.reshape(len(frames), 3, size, size).transpose(0, 2, 3, 1))

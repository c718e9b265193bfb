"""Scale frames with FFmpeg's scaler, as the references do."""

import numpy as np

from vlm_jax.errors import MissingPackageError

try:
    import av
    from av.video.reformatter import Interpolation, VideoReformatter
except ImportError as error:
    raise MissingPackageError("scaling video needs PyAV: pip install 'vlm_jax[video]'") from error


def scale(frames: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Return frames uint8 `[T, H, W, 3]` scaled to `height` x `width` pixels, or to a square.

    Scaling is bicubic, with antialiasing where frames shrink.
    """
    width = height if width is None else width
    reformatter, method = VideoReformatter(), Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    # One colour at a time: FFmpeg would convert RGB to YUV for scaling, which is slower and less exact.
    planes = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).reshape(-1, *frames.shape[1:3])
    scaled = np.empty((len(planes), height, width), np.uint8)
    for number, plane in enumerate(planes):
        picture = av.VideoFrame.from_ndarray(plane, format="gray")
        scaled[number] = reformatter.reformat(
            picture, width, height, format="gray", interpolation=method, threads=1
        ).to_ndarray()
    return np.ascontiguousarray(scaled.reshape(len(frames), 3, height, width).transpose(0, 2, 3, 1))

"""Encoding and decoding of frames with TensorFlow."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from vlm_jax.errors import DataError


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encode a frame, uint8 `[H, W, 3]`, as a JPEG; the bytes are the same on every machine."""
    return tf.io.encode_jpeg(frame, quality=quality).numpy()


def encode_png(frame: np.ndarray) -> bytes:
    """Encode a frame, uint8 `[H, W, 3]`, as a PNG, without loss."""
    return tf.io.encode_png(frame).numpy()


def decode_pngs(images: tf.Tensor) -> tf.Tensor:
    """Decode PNGs `[N]` of one size to uint8 `[N, H, W, 3]`."""
    return tf.map_fn(lambda image: tf.io.decode_png(image, channels=3), images, fn_output_signature=tf.uint8)


def decode_clip(
    images: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    u: tf.Tensor,
    w: tf.Tensor,
    *,
    num_frames: int,
    size: int,
    crop_only: bool,
) -> tf.Tensor:
    """Decode and crop at most T JPEGs to a clip, uint8 `[T, S, S, 3]`; missing frames at the end are black.

    Args:
      images: JPEGs of the frames, in order.
      height: Height of the frames, pixels.
      width: Width of the frames, pixels.
      u: Horizontal position of the crop, from 0 (left) to 1 (right).
      w: Vertical position of the crop, from 0 (top) to 1 (bottom).
      num_frames: Number of frames per clip, T.
      size: Height and width of the clip, S, pixels.
      crop_only: If true, crop S x S pixels without scaling; else crop the largest square and scale it (bicubic).
    """
    top, left, side = _window(height, width, u, w, size, crop_only)
    window = tf.stack([top, left, side, side])

    def decode(image: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_and_crop_jpeg(image, window, channels=3, dct_method="INTEGER_ACCURATE")

    black = tf.zeros([num_frames - tf.shape(images)[0], size, size, 3], tf.uint8)

    def shown() -> tf.Tensor:
        frames = tf.map_fn(decode, images, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))
        if not crop_only:
            # TensorFlow's own bicubic resize takes four times as long.
            from vlm_jax.video.scale import scale

            frames = tf.numpy_function(lambda video: scale(video, size), [frames], tf.uint8)
            frames = tf.ensure_shape(frames, [None, size, size, 3])
        return tf.concat([frames, black], 0)

    video = tf.cond(tf.size(images) > 0, shown, lambda: black)
    return tf.ensure_shape(video, [num_frames, size, size, 3])


def decode_segment_clip(
    segment: tf.Tensor,
    first: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    u: tf.Tensor,
    w: tf.Tensor,
    *,
    num_frames: int,
    size: int,
    crop_only: bool,
) -> tf.Tensor:
    """Decode a clip as `decode_clip` does, from frame `first` of an mp4 segment on (`vlm_jax.video.segment`)."""
    from vlm_jax.video.segment import SegmentError, decode_segment

    def decode(data: bytes, first: np.int32, *window: np.int32) -> np.ndarray:
        place = tuple(map(int, window))
        try:
            return decode_segment(data, int(first), num_frames, window=place, size=None if crop_only else size)
        except SegmentError as error:
            raise DataError(str(error)) from error

    window = _window(height, width, u, w, size, crop_only)
    video = tf.numpy_function(decode, [segment, first, *window], tf.uint8)
    return tf.ensure_shape(video, [num_frames, size, size, 3])


def decode_video_clip(
    video: tf.Tensor,
    start: tf.Tensor,
    u: tf.Tensor,
    w: tf.Tensor,
    *,
    num_frames: int,
    fps: int,
    size: int,
    crop_only: bool,
) -> tf.Tensor:
    """Decode a clip as `decode_clip` does, from second `start` of a whole video file on, with FFmpeg's own filters."""
    from vlm_jax.video import decode as videos

    def decode(data: bytes, start: np.int64, u: np.float64, w: np.float64) -> np.ndarray:
        filters = (videos.crop if crop_only else videos.square_crop)(size, float(u), float(w))
        options = {"num_frames": num_frames, "fps": fps, "filters": filters, "strict": False}
        try:
            return videos.read_clip(data, start=int(start), **options)
        except (videos.VideoError, ValueError) as error:
            raise DataError(str(error)) from error

    clip = tf.numpy_function(decode, [video, start, u, w], tf.uint8)
    return tf.ensure_shape(clip, [num_frames, size, size, 3])


def seconds_shown(record: Mapping[str, tf.Tensor], fps: int) -> float:
    """Return the duration in seconds of a record's content: `frames`, an `mp4` segment, or a whole `video`."""
    if "video" in record:
        from vlm_jax.video import decode

        return decode.probe(record["video"].numpy()).duration
    if "mp4" in record:
        from vlm_jax.video.segment import segment_length

        return segment_length(record["mp4"].numpy()) / fps
    return len(record["frames"]) / fps


def _window(
    height: tf.Tensor, width: tf.Tensor, u: tf.Tensor, w: tf.Tensor, size: int, crop_only: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return top, left and side of the crop, in pixels."""
    side = tf.constant(size) if crop_only else tf.minimum(height, width)
    # tf.round rounds half to even, as the reference's crop does.
    left = tf.cast(tf.round(tf.cast(width - side, tf.float64) * u), tf.int32)
    top = tf.cast(tf.round(tf.cast(height - side, tf.float64) * w), tf.int32)
    return top, left, side

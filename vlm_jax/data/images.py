"""Encoding and decoding frames."""

import numpy as np
import tensorflow as tf


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """`[H, W, 3]` -> JPEG, the same bytes on every machine."""
    return tf.io.encode_jpeg(frame, quality=quality).numpy()


def encode_png(frame: np.ndarray) -> bytes:
    """`[H, W, 3]` -> PNG, lossless."""
    return tf.io.encode_png(frame).numpy()


def decode_pngs(images: tf.Tensor) -> tf.Tensor:
    """PNGs `[N]` of one size -> uint8 `[N, H, W, 3]`."""
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
    """Decodes JPEGs `[<=T]` and crops them: uint8 `[T, S, S, 3]`, missing frames black at the end.

    Args:
      images: The frames.
      height: Of the frames, pixels.
      width: Of the frames, pixels.
      u: Horizontal place of the crop, 0 left to 1 right.
      w: Vertical place, 0 top to 1 bottom.
      num_frames: T.
      size: S.
      crop_only: Crop S x S as it is; else crop the largest square and scale it (bicubic).
    """
    side = size if crop_only else tf.minimum(height, width)
    # tf.round rounds half to even, as the reference's crop does.
    left = tf.cast(tf.round(tf.cast(width - side, tf.float64) * u), tf.int32)
    top = tf.cast(tf.round(tf.cast(height - side, tf.float64) * w), tf.int32)
    window = tf.stack([top, left, side, side])

    def decode(image: tf.Tensor) -> tf.Tensor:
        frame = tf.io.decode_and_crop_jpeg(image, window, channels=3, dct_method="INTEGER_ACCURATE")
        if not crop_only:
            scaled = tf.image.resize(frame, [size, size], method="bicubic", antialias=True)
            frame = tf.cast(tf.clip_by_value(tf.round(scaled), 0, 255), tf.uint8)
        return frame

    black = tf.zeros([num_frames - tf.shape(images)[0], size, size, 3], tf.uint8)

    def shown() -> tf.Tensor:
        frames = tf.map_fn(decode, images, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))
        return tf.concat([frames, black], 0)

    video = tf.cond(tf.size(images) > 0, shown, lambda: black)
    return tf.ensure_shape(video, [num_frames, size, size, 3])

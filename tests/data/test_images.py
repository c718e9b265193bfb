import numpy as np
import pytest
import tensorflow as tf

from vlm_jax.data import images
from vlm_jax.video import decode


@pytest.fixture(scope="module")
def clips_folder(root):
    return root / "data_prep" / "clips"


def test_png_is_lossless():
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    encoded = tf.constant([images.encode_png(frame) for frame in frames])
    np.testing.assert_array_equal(images.decode_pngs(encoded), frames)


def test_no_frames_give_a_black_clip():
    made = images.decode_clip(
        tf.constant([], tf.string),
        tf.constant(40),
        tf.constant(60),
        tf.constant(0.5, tf.float64),
        tf.constant(0.5, tf.float64),
        num_frames=3,
        size=32,
        crop_only=True,
    )
    np.testing.assert_array_equal(made, np.zeros((3, 32, 32, 3), np.uint8))


def crop(frames, u, w, size, crop_only=True, num_frames=None):
    jpegs = [images.encode_jpeg(frame, 95) for frame in frames]
    height, width = frames[0].shape[:2]
    made = images.decode_clip(
        tf.constant(jpegs),
        tf.constant(height),
        tf.constant(width),
        tf.constant(u, tf.float64),
        tf.constant(w, tf.float64),
        num_frames=num_frames or len(frames),
        size=size,
        crop_only=crop_only,
    )
    return made.numpy(), np.stack([tf.io.decode_jpeg(jpeg, dct_method="INTEGER_ACCURATE").numpy() for jpeg in jpegs])


@pytest.mark.parametrize(
    ("height", "width", "u", "w", "left", "top"),
    [
        (40, 60, 0.0, 0.0, 0, 0),
        (40, 60, 0.5, 0.5, 14, 4),
        (40, 60, 0.99, 0.99, 28, 8),
        (35, 39, 0.5, 0.5, 4, 2),  # 3.5 and 1.5: halves go to the even number
        (37, 33, 0.5, 0.5, 0, 2),  # 0.5 and 2.5
        (32, 32, 0.7, 0.2, 0, 0),
    ],
)
def test_crops(clips_folder, height, width, u, w, left, top):
    frames = decode.read_clip(
        clips_folder / "bunny.mp4", start=12, num_frames=2, fps=5, filters=f"crop={width}:{height}:50:30:exact=1"
    )
    made, decoded = crop(frames, u, w, 32, num_frames=3)
    window = decoded[:, top : top + 32, left : left + 32]
    # At its edges the decoder has no neighbours to smooth colours with.
    np.testing.assert_array_equal(made[:2, 1:-1, 1:-1], window[:, 1:-1, 1:-1])
    assert not made[2].any()


def test_square_crops_are_scaled_like_the_decoder_does(clips_folder):
    path = clips_folder / "bunny.mp4"
    read = {"start": 12, "num_frames": 2, "fps": 5}
    made, _ = crop(decode.read_clip(path, **read), 0.25, 0.0, 64, crop_only=False)
    expected = decode.read_clip(path, **read, filters=decode.square_crop(64, 0.25, 0.0))
    assert np.abs(made.astype(int) - expected).mean() < 2
    shifted = decode.read_clip(path, **read, filters=decode.square_crop(64, 0.3, 0.0))
    assert np.abs(made.astype(int) - shifted).mean() > 4

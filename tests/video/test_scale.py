import numpy as np
import pytest

from vlm_jax.video import decode
from vlm_jax.video.scale import scale


@pytest.fixture(scope="module")
def film(root):
    path = root / "data_prep" / "clips" / "bunny.mp4"
    return decode.read_frames(path, fps=1, seconds=12, filters="crop=200:200:30:20")


def test_as_ffmpeg_scales_rgb(film, root):
    for size in (160, 200, 233):
        filters = f"crop=200:200:30:20,format=rgb24,scale={size}:{size}:flags=bicubic+accurate_rnd+full_chroma_inp"
        expected = decode.read_frames(root / "data_prep" / "clips" / "bunny.mp4", fps=1, seconds=12, filters=filters)
        scaled = scale(film, size)
        assert (scaled.shape, scaled.dtype) == ((12, size, size, 3), np.uint8)
        assert np.abs(scaled.astype(int) - expected).mean() < 1


def test_height_and_width_are_chosen_apart(film):
    wide = scale(film, 40, 100)
    assert wide.shape == (12, 40, 100, 3)
    assert np.abs(wide.mean((1, 2)) - film.mean((1, 2))).max() < 2


def test_plain_frames_stay_plain_and_apart():
    levels = np.array([[0, 0, 0], [255, 255, 255], [10, 120, 240], [7, 8, 9]], np.uint8)
    frames = np.broadcast_to(levels[:, None, None], (4, 30, 20, 3))
    for size in (1, 16, 30, 64):
        np.testing.assert_array_equal(scale(frames, size), np.broadcast_to(levels[:, None, None], (4, size, size, 3)))


def test_shrinking_averages():
    """Stripes of a pixel become grey; they would survive where only the nearest pixels count."""
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    frames[:, :, ::2] = 200
    assert np.abs(scale(frames, 16)[:, :, 2:-2].astype(int) - 100).max() < 12


def test_the_picture_is_not_shifted():
    """Mirrored, then scaled, is scaled, then mirrored."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    for axis in (1, 2):
        np.testing.assert_allclose(np.flip(scale(np.flip(frames, axis), 28), axis), scale(frames, 28), atol=2)

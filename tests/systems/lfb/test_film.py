"""Keyframe clips of films of any length, size and rate."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from ml_collections import ConfigDict

from vlm_jax.systems.lfb.film import keyframe_clips
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

CLIPS = {"num_frames": 4, "interval": 16, "fps": 30, "frame_shift": 1, "evaluation_short_side": 16}


def numbered(count, height=16, width=24):
    """Frames whose brightness is their number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3))


def keyframes(path, **changed):
    return list(keyframe_clips(path, ConfigDict(CLIPS | changed)))


@pytest.mark.parametrize("shift", [0, 1])
def test_frames_around_every_second(tmp_path, shift):
    write_video(tmp_path / "film.mp4", numbered(100), 30, lossless=True)
    found = keyframes(tmp_path / "film.mp4", frame_shift=shift)
    assert [second for second, _ in found] == [0, 1, 2, 3]
    for second, clip in found:
        places = np.clip(30 * second + np.array([-32, -16, 0, 16]) + shift, 0, 99)
        np.testing.assert_array_equal(clip, numbered(100)[places])


def test_other_rates_are_resampled(tmp_path):
    """At 15 frames per second each frame comes twice; here the config asks for 10 frames per second."""
    write_video(tmp_path / "film.mp4", numbered(60), 15, lossless=True)
    options = {"fps": 10, "interval": 3, "num_frames": 3, "frame_shift": 0}
    resampled = decode.read_frames(tmp_path / "film.mp4", fps=10)
    for second, clip in keyframes(tmp_path / "film.mp4", **options):
        np.testing.assert_array_equal(clip, resampled[np.clip(10 * second + np.array([-3, 0, 3]), 0, 39)])
    assert second == 3


@pytest.mark.parametrize(("count", "rate"), [(1, 25), (1, 100), (3, 30), (31, 30)])
def test_films_shorter_than_a_clip(tmp_path, count, rate):
    write_video(tmp_path / "film.mp4", numbered(count), rate, lossless=True)
    found = keyframes(tmp_path / "film.mp4")
    assert len(found) == 1 + (count > 30)
    assert all(clip.shape == (4, 16, 24, 3) for _, clip in found)
    assert found[0][1][0].max() == 0
    assert found[-1][1][-1].max() == min(count - 1, 30 * (len(found) - 1) + 17)


def test_odd_rotated_and_variable_films(tmp_path):
    times = [Fraction(k, 30) if k < 20 else Fraction(20, 30) + Fraction(k - 20, 10) for k in range(40)]
    options = {"lossless": True, "rotation": 90, "times": times}
    write_video(tmp_path / "film.mkv", numbered(40, 33, 51), 30, **options)
    found = keyframes(tmp_path / "film.mkv")
    assert [second for second, _ in found] == [0, 1, 2]
    assert found[0][1].shape == (4, 25, 16, 3), "upright, 51 x 33 scaled to a shorter side of 16"


def test_memory_does_not_depend_on_the_length(tmp_path):
    most = []
    for seconds in (5, 50):
        write_video(tmp_path / "film.mp4", (numbered(256)[k % 256] for k in range(10 * seconds)), 10)
        tracemalloc.start()
        for _ in keyframe_clips(tmp_path / "film.mp4", ConfigDict(CLIPS)):
            pass
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < 1.3 * most[0]


def test_files_that_are_no_films(tmp_path):
    (tmp_path / "film.mp4").write_text("text")
    with pytest.raises(decode.VideoError, match=r"film\.mp4: unreadable"):
        keyframes(tmp_path / "film.mp4")

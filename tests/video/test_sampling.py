import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from vlm_jax.video.sampling import clip_starts, frame_windows, resample


def frame_times(rate, first, count):
    """Times of `count` frames at `rate`, the first of them `first` seconds after the seek."""
    return [Fraction(first) + k / Fraction(rate) for k in range(count)]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (25, [2, 7, 12, 17, 22, 27, 32]),
        (30, [2, 8, 14, 20, 26, 32, 38]),
        (10, [0, 2, 4, 6, 8, 10, 12]),
        (50, [4, 14, 24, 34, 44, 54, 64]),
        (5, [0, 1, 2, 3, 4, 5, 6]),
        (4, [0, 1, 1, 2, 3, 4, 5]),
        (2, [0, 0, 0, 1, 1, 2, 2]),
    ],
)
def test_resample_constant_rates(rate, expected):
    # 7 outputs at 5 frames per second; a frame half-way between two outputs belongs to the later one.
    assert resample(frame_times(rate, 0, 80), 5, Fraction("1.4")) == expected


def test_resample_ntsc():
    # Frame 3k is 0.1001 k s: the half-way points 0.1, 0.3, 0.5 ... are passed by frames 3, 9, 15, ...
    times = frame_times(Fraction(30000, 1001), 0, 60)
    assert resample(times, 5, Fraction(1)) == [2, 8, 14, 20, 26]


def test_resample_to_a_fractional_rate():
    times = frame_times(30, 0, 30)
    assert resample(times, Fraction(15, 2), Fraction(1)) == [1, 5, 9, 13, 17, 21, 25, 29]


def test_resample_counts_outputs_to_the_nearest():
    times = frame_times(25, 0, 25)
    assert len(resample(times, 5, Fraction("0.49"))) == 2
    assert len(resample(times, 5, Fraction("0.5"))) == 3
    assert resample(times, 5, Fraction("0.09")) == []


def test_resample_repeats_the_first_output_back_to_the_seek():
    # Slots 2, 2, 3: nothing is due at outputs 0 and 1, and frame 1 replaces frame 0 at output 2.
    times = [Fraction(3, 10), Fraction(4, 10), Fraction(5, 10)]
    assert resample(times, 5, Fraction("0.7")) == [1, 1, 1, 2]


def test_resample_holds_a_frame_over_a_gap():
    times = [Fraction(0), Fraction(1), Fraction(6, 5)]
    assert resample(times, 5, Fraction("1.4")) == [0, 0, 0, 0, 0, 1, 2]


def test_resample_without_frames():
    assert resample([], 5, Fraction("3.3")) == []


def test_clip_starts_leave_room_for_the_last_clip():
    starts = clip_starts(47.0, 60.0, 4, 3.2)
    assert starts.dtype == np.float64
    np.testing.assert_allclose(starts, [47, 47 + 9.4 / 3, 47 + 18.8 / 3, 56.4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("end", [10.0, 11.0, 13.6])
def test_clip_starts_of_a_short_interval_are_all_its_start(end):
    np.testing.assert_allclose(clip_starts(10.0, end, 5, 3.2), [10.0] * 5, rtol=0, atol=1e-12)


def test_a_single_clip_starts_at_the_start():
    assert clip_starts(2.5, 99.0, 1, 3.2).tolist() == [2.5]


def test_frame_windows_span_the_video():
    windows = frame_windows(30, 4, 16)
    assert windows.shape == (4, 16)
    assert windows[:, 0].tolist() == [0, 4, 9, 14]
    assert (np.diff(windows, axis=1) == 1).all()
    assert windows[-1, -1] == 29


@pytest.mark.parametrize("num_source_frames", [0, 1, 5, 15])
def test_frame_windows_of_a_short_video_end_in_black(num_source_frames):
    windows = frame_windows(num_source_frames, 3, 16)
    expected = [*range(num_source_frames), *[-1] * (16 - num_source_frames)]
    assert windows.tolist() == [expected] * 3


def test_frame_windows_cut_floating_point_starts():
    # The exact start of window 7 is 61; in float64 it is just below.
    assert frame_windows(138, 15, 16)[7, 0] == 60


def test_frame_windows_refuse_a_negative_number_of_frames():
    with pytest.raises(ValueError, match="num_source_frames is -1"):
        frame_windows(-1, 4, 16)


@pytest.mark.parametrize("module", ["decode", "write"])
def test_only_decoding_and_writing_need_pyav(module):
    code = "import sys; sys.modules['av'] = None; import vlm_jax.video.sampling; import vlm_jax.video." + module
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("video needs PyAV: pip install 'vlm_jax[video]'")

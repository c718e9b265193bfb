import pickle
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest

from vlm_jax.video import decode
from vlm_jax.video.decode import (
    VideoError,
    count_frames,
    frames_at,
    probe,
    read_clip,
    read_clips,
    read_frames,
    stream_frames,
)
from vlm_jax.video.sampling import resample
from vlm_jax.video.write import write_video


def window_crop(size, u, w):
    """The filter for a window of size x size pixels at x = (width - size) * u, y = (height - size) * w."""
    return f"crop={size}:{size}:(iw - {size})*{float(u)}:(ih - {size})*{float(w)}"


def numbered(count, height=16, width=32):
    """Frames whose grey level is their number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3)).copy()


def ids(frames):
    assert (frames == frames[:, :1, :1, :1]).all()
    return frames[:, 0, 0, 0].tolist()


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """100 numbered frames at 25 per second (4 s), lossless; the container by the ending that is asked for."""
    made = {}

    def make(suffix=".mp4"):
        if suffix not in made:
            made[suffix] = tmp_path_factory.mktemp("clip") / f"clip{suffix}"
            write_video(made[suffix], numbered(100), 25, lossless=True, gop=20)
        return made[suffix]

    return make


@pytest.fixture(scope="session")
def busy(tmp_path_factory):
    """Noise, 75 frames at 25 per second, with the .mp4 index in front: large enough to be cut and damaged."""
    noise = np.random.default_rng(0).integers(0, 256, (75, 48, 64, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("busy")
    for suffix in (".mp4", ".mkv", ".avi"):
        write_video(folder / f"busy{suffix}", noise, 25, gop=25)
    options = {"movflags": "faststart"}
    with av.open(folder / "busy.mp4") as source, av.open(folder / "front.mp4", "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return folder


def test_probe(clip):
    info = probe(clip())
    assert (info.width, info.height, info.rotation, info.num_frames, info.codec) == (32, 16, 0, 100, "h264")
    assert info.frame_rate == 25
    assert info.duration == 4.0
    assert info.path == str(clip())
    assert probe(clip(".mkv")).num_frames == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm", ".ts", ".avi"])
def test_every_frame_comes_once(clip, suffix):
    frames = read_frames(clip(suffix))
    assert frames.shape == (100, 16, 32, 3)
    assert frames.dtype == np.uint8
    assert ids(frames) == list(range(100))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".ts"])
@pytest.mark.parametrize(("start", "first"), [(0.01, 1), (0.5, 13), (1.0, 25), (1.97, 50), (2.5, 63), (3.96, 99)])
def test_seek_is_exact(clip, suffix, start, first):
    assert ids(read_frames(clip(suffix), start=start)) == list(range(first, 100))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".webm"])
def test_frames_of_some_numbers(clip, suffix):
    assert count_frames(clip(suffix)) == 100
    assert ids(np.stack(list(frames_at(clip(suffix), [0, 7, 8, 63])))) == [0, 7, 8, 63]
    assert ids(np.stack(list(frames_at(clip(suffix), [99, 100, 200])))) == [99]
    assert not list(frames_at(clip(suffix).read_bytes(), [100]))
    small = next(frames_at(clip(suffix), [3], "scale=8:4"))
    assert small.shape == (4, 8, 3)


def test_seconds_end_before_the_frame_at_the_end(clip):
    assert ids(read_frames(clip(), start=1.0, seconds=0.2)) == [25, 26, 27, 28, 29]
    assert ids(read_frames(clip(), start=1.0, seconds=Fraction(21, 100))) == [25, 26, 27, 28, 29, 30]


@pytest.mark.parametrize(
    ("rate", "start", "expected"),
    [
        (25, 0, [2, 7, 12, 17, 22]),
        (25, 2.5, [64, 69, 74, 79, 84]),
        (30, 1, [32, 38, 44, 50, 56]),
        (10, 0.5, [5, 7, 9, 11, 13]),
        (50, 0.1, [9, 19, 29, 39, 49]),
        (Fraction(30000, 1001), 0, [2, 8, 14, 20, 26]),
        (4, 1, [4, 5, 5, 6, 7]),
        # Nothing is due at the first output: the second is repeated.
        (8, 1.015, [10, 10, 12, 13, 15]),
    ],
)
def test_fps_chooses_frames_as_ffmpeg_does(tmp_path, rate, start, expected):
    path = tmp_path / "clip.mp4"
    write_video(path, numbered(120), rate, lossless=True)
    got = ids(read_frames(path, start=start, seconds=2, fps=5))
    assert got[:5] == expected
    times = [k / Fraction(rate) - Fraction(str(start)) for k in range(120)]
    first = next(k for k in range(120) if times[k] >= 0)
    chosen = resample(times[first:], 5, Fraction(2))
    assert got[: len(chosen)] == [first + index for index in chosen]


def test_clip_is_padded_with_black_at_its_end(clip):
    frames = read_clip(clip(), start=3.0, num_frames=8, fps=5)
    assert ids(frames) == [77, 82, 87, 92, 97, 0, 0, 0]
    assert ids(read_clip(clip(), start=1, num_frames=4, fps=25)) == [25, 26, 27, 28]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_seek_past_the_end(clip, suffix):
    filters = window_crop(8, 0.5, 0.5) + ",scale=20:12"
    assert read_frames(clip(suffix), start=50, fps=5, filters=filters).shape == (0, 12, 20, 3)
    assert not read_clip(clip(suffix), start=4.0, num_frames=3, fps=5, filters=filters).any()
    assert read_clip(clip(suffix), start=50, num_frames=3, fps=5, filters=filters).shape == (3, 12, 20, 3)


def test_clips_of_one_video(clip):
    clips = read_clips(clip(), [0.0, 1.0, 9.0], 4, 5)
    assert clips.shape == (3, 4, 16, 32, 3)
    assert [ids(frames) for frames in clips] == [[2, 7, 12, 17], [27, 32, 37, 42], [0, 0, 0, 0]]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_variable_frame_rate(tmp_path, suffix):
    path = tmp_path / f"variable{suffix}"
    times = [Fraction(k * k, 50) for k in range(12)]
    write_video(path, numbered(12), 10, lossless=True, times=times)
    assert ids(read_frames(path)) == list(range(12))
    length = times[-1] + Fraction(1, 10)
    got = ids(read_frames(path, fps=5))
    # How long the last frame lasts is not stored everywhere.
    assert got[:12] == resample(times, 5, length)[:12]
    assert abs(len(got) - len(resample(times, 5, length))) <= 1
    assert ids(read_frames(path, start=0.5, seconds=1)) == [5, 6, 7, 8]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_first_time_stamp_is_not_zero(tmp_path, suffix):
    path = tmp_path / f"late{suffix}"
    times = [7 + Fraction(k, 25) for k in range(30)]
    write_video(path, numbered(30), 25, lossless=True, times=times, gop=10)
    assert ids(read_frames(path)) == list(range(30))
    assert ids(read_frames(path, start=0.6)) == list(range(15, 30))
    assert ids(read_frames(path, fps=5)) == [2, 7, 12, 17, 22, 27]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_video_that_begins_after_the_sound(tmp_path, suffix):
    path = tmp_path / f"sound{suffix}"
    with av.open(path, "w") as container:
        video = container.add_stream("libx264rgb", rate=25, options={"qp": "0", "bf": "0"})
        video.width, video.height, video.pix_fmt = 32, 16, "bgr24"
        sound = container.add_stream("aac", rate=8000, layout="mono")
        for k in range(30):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, 1024 * k
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
        for k, array in enumerate(numbered(30)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = k + 10, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert ids(read_frames(path)) == list(range(30))
    # The first frame is due at 0.4 s, half-way to output 3: outputs 0 and 1 repeat output 2.
    assert ids(read_frames(path, fps=5)) == [2, 2, 2, 7, 12, 17, 22, 27]
    assert ids(read_frames(path, start=0.1)) == list(range(30))


def test_colour_matrix_of_the_file(tmp_path):
    path = tmp_path / "colour.mp4"
    luma, blue, red = 120, 90, 170
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.codec_context.colorspace = 1
        planes = np.concatenate([np.full(512, luma), np.full(128, blue), np.full(128, red)])
        frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8).reshape(24, 32), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    y, cb, cr = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    bt709 = np.array([y + 1.5748 * cr, y - 0.1873 * cb - 0.4681 * cr, y + 1.8556 * cb])
    np.testing.assert_allclose(read_frames(path)[0, 4, 4], 255 * bt709, atol=2)


def test_threads_do_not_change_frames(busy):
    path = busy / "busy.mp4"
    np.testing.assert_array_equal(read_frames(path, start=1), read_frames(path, start=1, threads=2))


def test_crop_rounds_half_to_even_on_rgb(tmp_path):
    path = tmp_path / "columns.mp4"
    frames = np.zeros((1, 9, 11, 3), np.uint8)
    frames[...] = 10 * np.arange(11)[:, None] + np.arange(9)[:, None, None]
    write_video(path, frames, 25, lossless=True)
    # x = 7 / 2 -> 4, y = 5 / 2 -> 2.
    cropped = read_frames(path, filters=window_crop(4, 0.5, 0.5))
    np.testing.assert_array_equal(cropped, frames[:, 2:6, 4:8])
    cropped = read_frames(path, filters=window_crop(4, 1, 0))
    np.testing.assert_array_equal(cropped, frames[:, :4, 7:])


def test_crop_rounds_down_to_even_on_yuv420p(tmp_path):
    path = tmp_path / "columns.mp4"
    frames = np.zeros((1, 16, 22, 3), np.uint8)
    frames[...] = 10 * np.arange(22)[:, None]
    write_video(path, frames, 25)
    # x = 14 / 2 = 7 -> 6
    cropped = read_frames(path, filters=window_crop(8, 0.5, 0.5))
    assert cropped.shape == (1, 8, 8, 3)
    assert abs(cropped.astype(int) - frames[:, :8, 6:14]).mean() < 4


def test_square_crop(tmp_path):
    path = tmp_path / "thirds.mp4"
    frames = np.zeros((2, 20, 60, 3), np.uint8)
    frames[:, :, :20], frames[:, :, 20:40], frames[:, :, 40:] = 50, 100, 150
    write_video(path, frames, 25, lossless=True)
    for u, grey in ((0, 50), (0.5, 100), (1, 150)):
        cropped = read_frames(path, filters=decode.square_crop(10, u))
        assert cropped.shape == (2, 10, 10, 3)
        assert (cropped == grey).all()
    assert decode.square_crop(10) == decode.square_crop(10, 0.5, 0.5)


@pytest.mark.parametrize(
    ("height", "width", "filters", "expected"),
    [
        (40, 64, decode.short_side(20), (20, 32)),
        (64, 40, decode.short_side(20), (32, 20)),
        (40, 66, decode.short_side(24), (24, 40)),
        (40, 64, decode.short_side(80), (40, 64)),
        (40, 64, decode.short_side(80, enlarge=True), (80, 128)),
        (45, 75, decode.short_side(60), (44, 74)),
        (40, 40, decode.short_side(20), (20, 20)),
    ],
)
def test_short_side(tmp_path, height, width, filters, expected):
    path = tmp_path / "sized.mp4"
    write_video(path, numbered(1, height, width), 25, lossless=True)
    assert read_frames(path, filters=filters).shape[1:3] == expected


def test_short_side_has_to_be_even():
    with pytest.raises(ValueError, match="side is 225"):
        decode.short_side(225)


def test_filter_texts_are_read_as_ffmpeg_reads_them(tmp_path):
    path = tmp_path / "noise.mp4"
    frames = np.random.default_rng(1).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    write_video(path, frames, 25, lossless=True)
    for text in ("crop='min(iw,ih)':8:0:0,hflip", "crop=min(iw\\,ih):8:0:0 , hflip", "crop=16:8:0:0,hflip"):
        np.testing.assert_array_equal(read_frames(path, filters=text), frames[:, :8, 15::-1])
    np.testing.assert_array_equal(read_frames(path, filters="hflip"), frames[:, :, ::-1])


@pytest.mark.parametrize("filters", ["no_such_filter", "crop=8:8:nonsense", "scale=8:8:no_such_option=1"])
def test_filters_that_ffmpeg_cannot_use(clip, filters):
    with pytest.raises(ValueError, match=r"clip\.mp4: FFmpeg cannot use") as caught:
        read_frames(clip(), filters=filters)
    assert not isinstance(caught.value, VideoError)


@pytest.mark.parametrize("arguments", [{"start": -1}, {"seconds": 0}])
def test_impossible_times(clip, arguments):
    with pytest.raises(ValueError, match=r"clip\.mp4: start is"):
        read_frames(clip(), **arguments)


def test_frames_that_are_too_small(clip):
    with pytest.raises(VideoError, match=r"clip\.mp4: too small \(32 x 16\)") as caught:
        read_clip(clip(), start=0, num_frames=2, fps=5, filters=window_crop(20, 0, 0))
    assert caught.value.reason == "too small"


def write_sound(path):
    with av.open(path, "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.mkdir(), "missing"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_text("not a video\n" * 50), "unreadable"),
        (write_sound, "no video stream"),
    ],
)
@pytest.mark.parametrize("read", [probe, read_frames])
def test_files_that_are_no_videos(tmp_path, make, reason, read):
    path = tmp_path / "bad.mp4"
    make(path)
    with pytest.raises(VideoError, match=rf"^\S*bad\.mp4: {reason}") as caught:
        read(path)
    assert (caught.value.path, caught.value.reason) == (str(path), reason)
    assert "\n" not in str(caught.value)


def test_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "truncated", "at 2 s")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "truncated", "a.mp4: truncated (at 2 s)")


@pytest.mark.parametrize("name", ["front.mp4", "busy.mkv", "busy.avi"])
def test_truncated_file(busy, tmp_path, name):
    whole = read_frames(busy / name)
    path = tmp_path / name
    data = (busy / name).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for start in (0, 2.5):
        with pytest.raises(VideoError) as caught:
            read_frames(path, start=start)
        assert caught.value.reason == "truncated"
    rest = read_frames(path, strict=False)
    assert 20 < len(rest) < 60
    np.testing.assert_array_equal(rest[:20], whole[:20])
    np.testing.assert_array_equal(read_frames(path, seconds=0.4), whole[:10])


def test_mp4_without_its_index_is_unreadable(busy, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes((busy / "busy.mp4").read_bytes()[:-3000])
    with pytest.raises(VideoError, match="unreadable"):
        probe(path)


def test_damage_in_the_middle(busy, tmp_path):
    path = tmp_path / "damaged.mp4"
    data = bytearray((busy / "busy.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(VideoError) as caught:
        read_frames(path)
    assert caught.value.reason == "unreadable"
    assert len(read_frames(path, strict=False)) > 40
    assert len(read_frames(path, seconds=0.4)) == 10


def test_size_that_changes_on_the_way(tmp_path):
    write_video(tmp_path / "small.ts", numbered(5), 25)
    write_video(tmp_path / "large.ts", numbered(5, 32, 48), 25)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())
    with pytest.raises(VideoError) as caught:
        read_frames(path)
    assert caught.value.reason == "changing size"


def test_frames_are_independent_arrays(clip):
    frames = []
    for frame in stream_frames(clip(), fps=60, seconds=0.2):
        frames.append(frame.copy())
        frame += 100
    assert ids(np.stack(frames))[:6] == [0, 0, 1, 1, 1, 2]


def test_files_are_always_closed(clip, tmp_path, monkeypatch):
    clip(".ts")
    write_sound(tmp_path / "sound.mp4")
    opened = []
    open_file = av.open

    def record(*args, **kwargs):
        opened.append(open_file(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(decode.av, "open", record)
    next(stream_frames(clip()))
    read_clip(clip(), start=0, num_frames=2, fps=5)
    read_clip(clip(), start=99, num_frames=2, fps=5)
    read_frames(clip(".ts"), start=1)
    probe(clip())
    with pytest.raises(VideoError):
        read_frames(clip(), filters="crop=100:100")
    with pytest.raises(VideoError):
        read_frames(tmp_path / "sound.mp4")
    assert len(opened) >= 8
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            next(container.demux())


DAY = 86_400


@pytest.mark.parametrize(
    "times",
    [
        [Fraction(0), Fraction(1, 5), Fraction(3 * DAY)],
        [Fraction(3 * DAY), 3 * DAY + Fraction(1, 5)],
        [Fraction(number * 3000) for number in range(70)],
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_time_stamps_that_jump_do_not_make_endless_frames(tmp_path, times, strict):
    path = tmp_path / "jump.mkv"
    write_video(path, numbered(len(times)), 5, times=times)
    frames = stream_frames(path, fps=Fraction(1, 100), strict=strict)
    with pytest.raises(VideoError) as caught:
        list(islice(frames, 2 * DAY // 100 + 1))
    assert caught.value.reason == ("time jump" if len(times) < 10 else "too long")
    assert str(path) in str(caught.value)


def test_more_frames_at_once_than_memory_holds(clip, monkeypatch):
    monkeypatch.setattr(decode, "LARGEST_ARRAY", 50 * 16 * 32 * 3)
    with pytest.raises(VideoError, match=r"too long \(more than 51 frames of \[16, 32, 3\] at once\)"):
        read_frames(clip())
    assert len(read_frames(clip(), seconds=2)) == 50

import io

import av
import numpy as np
import pytest

from vlm_jax.video import decode, segment

FPS = 5


def coded(count=23, height=48, width=64):
    """Frames whose brightness is their number, with an edge that shows where a crop was taken."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (30 + 8 * np.arange(count))[:, None, None, None]
    frames[:, height // 2 :, :, 0] = 250
    frames[:, :, width // 2 :, 2] = 10
    return frames


def encode(frames, fps, crf=segment.DEFAULT_CRF):
    encoder = segment.SegmentEncoder(fps, crf)
    return encoder.mp4(list(encoder.packets(frames)))


@pytest.fixture(scope="module")
def film(root):
    """Half a minute of a real film at five frames a second."""
    path = root / "data_prep" / "clips" / "bunny.mp4"
    return decode.read_frames(path, fps=FPS, seconds=20, filters=decode.short_side(128))


@pytest.fixture(scope="module")
def stored(film):
    return encode(film, FPS)


def test_every_frame_comes_back_under_its_number(film, stored):
    assert segment.segment_length(stored) == len(film) == 100
    whole = segment.decode_segment(stored, 0, 100)
    assert whole.shape == film.shape
    assert np.abs(whole.astype(int) - film).mean() < 3
    for first in (0, 1, 4, 5, 17, 95, 99, 100, 250):
        part = segment.decode_segment(stored, first, 16)
        there = whole[first : first + 16]
        np.testing.assert_array_equal(part[: len(there)], there)
        assert not part[len(there) :].any()


def test_numbers_are_exact():
    frames = coded()
    data = encode(frames, FPS, crf=10)
    for first in range(23):
        shown = segment.decode_segment(data, first, 3)[:, :20, :20, 1].mean((1, 2))
        expected = [30 + 8 * k if k < 23 else 0 for k in range(first, first + 3)]
        np.testing.assert_allclose(shown, expected, atol=2.5)


@pytest.mark.parametrize(
    "window", [(0, 0, 64), (1, 0, 64), (0, 1, 64), (33, 77, 95), (32, 98, 96), (63, 161, 64), (0, 99, 128)]
)
def test_windows_are_cut_to_the_pixel(stored, film, window):
    assert film.shape[1:3] == (128, 228)
    top, left, side = window
    expected = segment.decode_segment(stored, 7, 9)[:, top : top + side, left : left + side]
    np.testing.assert_array_equal(segment.decode_segment(stored, 7, 9, window=window), expected)


def test_windows_are_scaled(stored, film):
    """As FFmpeg's own filters do it."""
    video = segment.decode_segment(stored, 7, 9, window=(0, 50, 128), size=112)
    assert video.shape == (9, 112, 112, 3)
    graph = av.filter.Graph()
    with av.open(io.BytesIO(stored)) as container:
        source = graph.add_buffer(template=container.streams.video[0])
        nodes = [source, graph.add("crop", "128:128:50:0"), graph.add("scale", "112:112:flags=bicubic")]
        graph.link_nodes(*nodes, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        for frame in container.decode(video=0):
            graph.vpush(frame)
        expected = np.stack([graph.vpull().to_ndarray() for _ in range(16)])[7:]
    np.testing.assert_allclose(video, expected, atol=3)
    assert np.abs(video.astype(int) - expected).mean() < 0.2


def test_a_clip_from_a_whole_second_decodes_no_frame_too_many(stored):
    with av.open(io.BytesIO(stored)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.is_keyframe for packet in packets] == [number % FPS == 0 for number in range(100)]
    assert [packet.dts for packet in packets] == [packet.pts for packet in packets]


def test_stretches_of_one_video(film):
    """Each of them is the file that starts there; the encoder reads no frame ahead."""
    encoder, read = segment.SegmentEncoder(FPS), []
    packets = []
    for packet in encoder.packets(read.append(frame) or frame for frame in film[:40]):
        packets.append(packet)
        assert len(read) == len(packets)
    whole = segment.decode_segment(encoder.mp4(packets), 0, 40)
    for first, last in ((0, 12), (5, 40), (35, 40)):
        data = encoder.mp4(packets[first:last])
        assert segment.segment_length(data) == last - first
        np.testing.assert_array_equal(segment.decode_segment(data, 0, last - first), whole[first:last])


def test_the_same_bytes_every_time(film):
    assert encode(film[:20], FPS) == encode(film[:20], FPS)


def test_less_crf_is_better_and_larger(film):
    sizes, errors = [], []
    for crf in (15, 23, 35):
        data = encode(film[:20], FPS, crf)
        sizes.append(len(data))
        errors.append(np.abs(segment.decode_segment(data, 0, 20).astype(int) - film[:20]).mean())
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_a_player_opens_it(stored, tmp_path):
    (tmp_path / "segment.mp4").write_bytes(stored)
    info = decode.probe(tmp_path / "segment.mp4")
    assert (info.width, info.height, info.frame_rate, info.num_frames, info.duration) == (228, 128, 5, 100, 20)


def test_no_frames_are_no_bytes():
    assert encode([], FPS) == b""
    assert segment.segment_length(b"") == 0
    assert segment.decode_segment(b"", 0, 3, window=(0, 0, 8)).shape == (3, 8, 8, 3)
    assert not segment.decode_segment(b"", 0, 3, window=(0, 0, 8), size=6).any()
    with pytest.raises(segment.SegmentError, match="no frames, and no size"):
        segment.decode_segment(b"", 0, 3)


def test_other_files_are_refused(tmp_path, film):
    from vlm_jax.video.write import write_video

    write_video(tmp_path / "a.mkv", film[:5], FPS)
    write_video(tmp_path / "colours.mp4", film[:5], FPS, lossless=True)
    for data in (b"no film", (tmp_path / "a.mkv").read_bytes(), (tmp_path / "colours.mp4").read_bytes()):
        with pytest.raises(segment.SegmentError, match="no mp4 file") as caught:
            segment.decode_segment(data, 0, 3)
        assert "\n" not in str(caught.value)
    with pytest.raises(segment.SegmentError, match="frames of 228x128 do not hold the window"):
        segment.decode_segment(encode(film[:5], FPS), 0, 3, window=(0, 101, 128))


def test_damaged_bytes_are_one_error_or_none(stored):
    """Cut or overwritten anywhere, it is a SegmentError or frames of the right size: nothing else, and no hang."""
    rng = np.random.default_rng(0)
    refused = []
    for number in range(120):
        damaged = bytearray(stored)
        if number % 3 == 0:
            damaged = damaged[: rng.integers(1, len(damaged))]
        else:
            begin = 0 if number % 3 == 1 else len(damaged) - 2000
            for place in rng.integers(begin, len(damaged), 16):
                damaged[place] = rng.integers(256)
        try:
            video = segment.decode_segment(bytes(damaged), 40, 16, window=(3, 5, 112))
        except segment.SegmentError as error:
            refused.append(str(error))
        else:
            assert video.shape == (16, 112, 112, 3)
    assert len(refused) > 60
    assert not any("\n" in message for message in refused)

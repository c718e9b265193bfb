import av
import numpy as np
import pytest

from vlm_jax.video.decode import probe, read_frames
from vlm_jax.video.write import write_video


def noise(count=4, height=16, width=24):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".ts", ".webm"])
@pytest.mark.parametrize("size", [(16, 24), (15, 25)])
def test_lossless_is_exact(tmp_path, suffix, size):
    frames = noise(4, *size)
    write_video(tmp_path / f"clip{suffix}", frames, 25, lossless=True)
    np.testing.assert_array_equal(read_frames(tmp_path / f"clip{suffix}"), frames)


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".mkv", "h264"), (".webm", "vp9")])
def test_ordinary_video(tmp_path, suffix, codec):
    path = tmp_path / f"clip{suffix}"
    frames = np.zeros((6, 32, 48, 3), np.uint8)
    frames[:] = np.linspace(20, 220, 48)[:, None]
    write_video(path, frames, 12)
    with av.open(path) as container:
        assert container.streams.video[0].format.name == "yuv420p"
    assert probe(path).codec == codec
    assert probe(path).frame_rate == 12
    assert abs(read_frames(path).astype(int) - frames).mean() < 3


def test_frames_may_come_one_by_one(tmp_path):
    frames = noise(3)
    write_video(tmp_path / "clip.mp4", (frame for frame in frames), 25, lossless=True)
    np.testing.assert_array_equal(read_frames(tmp_path / "clip.mp4"), frames)


def test_gop_sets_the_key_frames(tmp_path):
    write_video(tmp_path / "clip.mp4", noise(12), 25, gop=5)
    with av.open(tmp_path / "clip.mp4") as container:
        keys = [packet.is_keyframe for packet in container.demux() if packet.size]
    assert [index for index, key in enumerate(keys) if key] == [0, 5, 10]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_by_metadata(tmp_path, suffix, rotation):
    path = tmp_path / f"turned{suffix}"
    frames = np.zeros((3, 16, 24, 3), np.uint8)
    frames[:, :8, :8] = (250, 10, 10)
    frames[:, 8:, 16:] = (10, 250, 10)
    write_video(path, frames, 25, lossless=True, rotation=rotation)
    shown = np.rot90(frames, rotation // 90, axes=(1, 2))
    info = probe(path)
    assert (info.height, info.width, info.rotation) == (*shown.shape[1:3], rotation)
    np.testing.assert_array_equal(read_frames(path), shown)
    cropped = read_frames(path, filters="crop=8:8:0:0")
    np.testing.assert_array_equal(cropped, shown[:, :8, :8])


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (noise(2, 15, 24), {}, "24 x 15, expected even sides"),
        (noise(0), {}, "no frames to write"),
        (noise(2)[..., :1], {}, r"uint8 \[16, 24, 1\], expected uint8 \[H, W, 3\]"),
        (noise(2) / 255.0, {}, "float64"),
        ([*noise(2), noise(1, 8, 8)[0]], {}, r"uint8 \[8, 8, 3\], expected uint8 \[16, 24, 3\]"),
        (noise(2), {"rotation": 45}, "rotation is 45"),
        (noise(2), {"times": [0]}, "more frames than the 1 times"),
        (noise(2), {"times": [0, 1, 2]}, "2 frames but 3 times"),
        (noise(2), {"times": [1, 1]}, "expected them to increase"),
    ],
)
def test_what_cannot_be_written(tmp_path, frames, arguments, message):
    with pytest.raises(ValueError, match=r"clip\.mp4: .*" + message):
        write_video(tmp_path / "clip.mp4", frames, 25, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_containers_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"clip\.ts: rotation is 90"):
        write_video(tmp_path / "clip.ts", noise(), 25, rotation=90)
    with pytest.raises(ValueError, match=r"clip\.text: cannot write such a file"):
        write_video(tmp_path / "clip.text", noise(), 25)


def test_a_failure_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, noise(2), 25, lossless=True)

    def broken():
        yield noise(1)[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_video(path, broken(), 25)
    np.testing.assert_array_equal(read_frames(path), noise(2))
    assert list(tmp_path.iterdir()) == [path]

"""Features of whole videos: the Python interface and the command."""

import csv
import itertools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import features as feature_files
from vlm_jax import inference
from vlm_jax.errors import ConfigError
from vlm_jax.features import FeatureError
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import save_variables
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

CLIPS = Path(__file__).parents[2] / "data_prep" / "clips"


def make_checkpoint(root, folder, seed):
    """A tiny network with made weights, as a converted checkpoint lies on disk."""
    config = configs.load(str(root / "configs" / "milnce_howto100m.py:smoke"))
    config.model.blocks = ("3b",)
    rng = np.random.default_rng(seed)
    shapes = get_task(config).abstract_variables()
    save_variables(folder, jax.tree.map(lambda leaf: rng.uniform(0, 0.2, leaf.shape).astype(leaf.dtype), shapes), {})
    configs.write(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def checkpoint(root, tmp_path_factory):
    return make_checkpoint(root, tmp_path_factory.mktemp("checkpoints") / "one", 0)


@pytest.fixture(scope="module")
def model(checkpoint):
    return inference.load(checkpoint)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four films in two folders, one of them shorter than a window."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deep" / "er").mkdir(parents=True)
    frames = decode.read_frames(CLIPS / "bunny.mp4", seconds=6, filters="scale=64:48")
    write_video(folder / "one.mp4", frames, 25)
    write_video(folder / "deep" / "two.v2.mkv", frames[40:100], 25)
    write_video(folder / "deep" / "er" / "short.mp4", frames[:20], 25)
    write_video(folder / "three.avi", frames[::-1][:97], 24)
    return folder


def read_windows(path, settings, count):
    """The windows of a video, each read by a seek of its own."""
    filters = decode.square_crop(settings["size"])
    starts = [Fraction(row * settings["stride"], settings["fps"]) for row in range(count)]
    return np.stack([decode.read_clip(path, start=start, num_frames=settings["window"], fps=settings["fps"],
                                      filters=filters) for start in starts])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [
        ("one.mp4", 8, 8),
        ("one.mp4", 8, 3),
        ("one.mp4", 4, 7),
        ("deep/two.v2.mkv", 8, 3),
        ("deep/er/short.mp4", 8, 8),
    ],
)
def test_features_are_those_of_the_windows(model, videos, name, window, stride):
    settings = {"window": window, "stride": stride, "fps": 5, "size": 32}
    features = model.extract(videos / name, **settings, batch_size=4, threads=2)
    frames = len(decode.read_frames(videos / name, fps=5))
    begun = [begin for begin in range(0, frames, stride) if begin == 0 or begin + window - stride < frames]
    assert len(features) == len(begun)
    clips = read_windows(videos / name, settings, len(features))
    np.testing.assert_allclose(features, [model.video_features(clip) for clip in clips], rtol=1e-5, atol=1e-6)
    if name == "deep/er/short.mp4":
        assert len(features) == 1
        assert not clips[0, 4:].any(), "black after the end"


def test_batches_and_threads_change_nothing(model, videos):
    whole = model.extract(videos / "one.mp4", stride=2, batch_size=16)
    assert whole.dtype == np.float32
    assert np.abs(np.diff(whole, axis=0)).max() > 1e-4, "rows differ"
    for batch_size, threads in ((1, 0), (4, 4)):
        other = model.extract(videos / "one.mp4", stride=2, batch_size=batch_size, threads=threads)
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.extract(videos / "one.mp4", stride=2, batch_size=16, threads=3), whole)


def test_layers_and_crops(model, videos):
    embedding = model.extract(videos / "one.mp4", layer="video_embedding")
    clip = decode.read_clip(videos / "one.mp4", start=0, num_frames=8, fps=5, filters=decode.square_crop(32))
    np.testing.assert_allclose(embedding[0], model.encode_video(clip), rtol=1e-5, atol=1e-6)
    squeezed = model.extract(videos / "one.mp4", crop="none", batch_size=4)
    clip = decode.read_clip(videos / "one.mp4", start=0, num_frames=8, fps=5, filters="scale=32:32")
    np.testing.assert_allclose(squeezed[0], model.video_features(clip), rtol=1e-5, atol=1e-6)
    for wrong in ({"layer": "mixed_9z"}, {"crop": "left"}, {"stride": -1}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            model.extract(videos / "one.mp4", **wrong)


def test_a_broken_video_is_an_error(model, tmp_path):
    write_video(tmp_path / "whole.mkv", np.random.default_rng(0).integers(0, 256, (100, 48, 64, 3), np.uint8), 25)
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(decode.VideoError, match="truncated"):
        model.extract(tmp_path / "cut.mkv", batch_size=1)
    write_video(tmp_path / "blink.mp4", np.zeros((1, 48, 64, 3), np.uint8), 25)
    with pytest.raises(decode.VideoError, match="shorter than a frame at 5"):
        model.extract(tmp_path / "blink.mp4")


def test_a_fingerprint_is_of_the_numbers(root, checkpoint, model, tmp_path):
    assert inference.load(checkpoint).fingerprint() == model.fingerprint()
    other = inference.load(make_checkpoint(root, tmp_path / "other", 1))
    assert other.fingerprint() != model.fingerprint()
    layer = other.variables["params"]["video"]["fc"]
    before, layer["bias"] = other.fingerprint(), layer["bias"].at[0].add(1e-6)
    assert other.fingerprint() != before


@pytest.fixture
def extract(root, checkpoint, monkeypatch, capsys):
    """Runs the command in this process; returns what it printed."""

    def run(videos, output, *words, checkpoint=checkpoint):
        inputs = ["--checkpoint", checkpoint, "--videos", videos, "--output", output, "--batch_size", 4]
        monkeypatch.setattr(sys, "argv", ["extract_features.py", *map(str, [*inputs, *words])])
        monkeypatch.syspath_prepend(str(root / "launch"))
        runpy.run_path(str(root / "launch" / "extract_features.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(extract, capsys):
    """Runs the command, which is to end with one line; returns it."""

    def run(*words, **more):
        with pytest.raises(SystemExit) as stopped:
            extract(*words, **more)
        said = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 1
        assert said[-1].startswith("error: ")
        assert not [line for line in said[:-1] if "extracting" not in line]
        return said[-1]

    return run


def made(folder):
    """Bytes of every feature file, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.npy")}


NAMES = {"one.npy", "deep/two.v2.npy", "deep/er/short.npy", "three.npy"}


def test_a_folder_of_videos(extract, model, checkpoint, videos, tmp_path):
    said = extract(videos, tmp_path, "--stride", 4)
    assert "4 videos" in said
    assert made(tmp_path).keys() == NAMES
    wanted = {"stride": 4, "window": 8, "fps": 5, "size": 32, "fingerprint": model.fingerprint()}
    settings = feature_files.check_settings(tmp_path, wanted)
    assert (settings.checkpoint, settings.step, settings.layer) == (str(checkpoint), None, "mixed_5c")
    features = feature_files.load(tmp_path, "deep/two.v2", settings)
    np.testing.assert_array_equal(features, model.extract(videos / "deep/two.v2.mkv", stride=4, batch_size=4))
    assert len(features) == settings.rows(12)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert "0 videos, 0 rows of 32; 4 finished before, 0 skipped" in extract(videos, tmp_path, "--stride", 4)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_two_shards_are_the_whole(extract, videos, tmp_path):
    extract(videos, tmp_path / "whole", "--dtype", "float16")
    for index in range(2):
        extract(videos, tmp_path / "parts", "--dtype", "float16", "--num_shards", 2, "--shard_index", index)
        assert len(made(tmp_path / "parts")) == 2 * (index + 1)
    assert made(tmp_path / "parts") == made(tmp_path / "whole")
    assert feature_files.load(tmp_path / "parts", "one").dtype == np.float16


def test_a_list_of_videos(extract, refused, videos, tmp_path):
    def listed(*rows):
        (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
        return [videos, tmp_path / "made", "--list", tmp_path / "list.csv"]

    extract(*listed("video_path,label", "deep/two.v2.mkv,a", "one.mp4,b", "one.mp4,b"))
    assert made(tmp_path / "made").keys() == {"deep/two.v2.npy", "one.npy"}
    assert "list.csv: no column 'video_path'; it has path" in refused(*listed("path", "one.mp4"))
    assert "expected a path below" in refused(*listed("video_path", "../one.mp4"))
    assert "expected a path below" in refused(*listed("video_path", "/one.mp4"))
    assert "would both become one.npy" in refused(*listed("video_path", "one.mp4", "one.mkv"))
    assert "list.csv: no videos" in refused(*listed("video_path"))
    (tmp_path / "empty").mkdir()
    assert "no videos" in refused(tmp_path / "empty", tmp_path / "made")
    assert "no such folder" in refused(tmp_path / "none", tmp_path / "made")
    assert "no such folder" in refused(tmp_path / "none", *listed("video_path", "one.mp4")[1:])


def test_a_folder_begun_otherwise_is_refused(root, extract, refused, videos, tmp_path):
    (tmp_path / "list.csv").write_text("video_path\ndeep/er/short.mp4\n")
    words = [videos, tmp_path / "made", "--list", tmp_path / "list.csv"]
    extract(*words)
    before = made(tmp_path)
    assert "features.json: made with stride = 8, expected 2" in refused(*words, "--stride", 2)
    other = make_checkpoint(root, tmp_path / "other", 1)
    assert "made with fingerprint = '" in refused(*words, checkpoint=other)
    with pytest.raises(FeatureError, match="made with fingerprint = '"):
        feature_files.check_settings(tmp_path / "made", {"fingerprint": inference.load(other).fingerprint()})
    assert "layer: 'mixed_9z' is not one of mixed_5c, video_embedding" in refused(*words, "--layer", "mixed_9z")
    assert "--window: expected more than 0, found -1" in refused(*words, "--window", -1)
    assert "--shard_index: 2 is not one of 0 to 1" in refused(*words, "--num_shards", 2, "--shard_index", 2)
    assert made(tmp_path) == before


def test_what_is_no_video_is_skipped_and_listed(extract, refused, videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / "one.mp4", folder / "good.MP4")
    whole = (videos / "one.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.webm").write_bytes(b"")
    (folder / "text, with comma.mp4").write_text("this is no video\n" * 100)
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.mp4").write_text("nor this")
    (folder / "folder.mp4").mkdir()
    (folder / "folder.mp4" / "back").symlink_to(folder)
    for _ in range(2):  # they are tried, and listed, every time
        said = extract(folder, tmp_path / "made")
        assert "3 skipped" in said
        assert "1 x empty" in said
        with open(tmp_path / "made" / "skipped-0.csv", newline="") as file:
            rows = {row["video_path"]: row["reason"] for row in csv.DictReader(file)}
        assert rows == {"cut.mp4": "unreadable", "empty.webm": "empty", "text, with comma.mp4": "unreadable"}
        assert made(tmp_path / "made").keys() == {"good.npy"}
    (folder / "good.MP4").unlink()
    assert "none of 3 videos could be used; see" in refused(folder, tmp_path / "nothing")


KILLED = """
import os, runpy, signal, sys
import numpy as np
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
whole = np.save

def save(file, array):
    if save.videos == 2:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save.videos += 1
    whole(file, array)

save.videos, np.save = 0, save
sys.argv[0] = "launch/extract_features.py"
sys.path.insert(0, "launch")
runpy.run_path("launch/extract_features.py", run_name="__main__")
"""


def environment(root):
    return {**os.environ, "PYTHONPATH": str(root)}


def test_a_killed_run_goes_on(root, extract, checkpoint, videos, tmp_path):
    inputs = {"checkpoint": checkpoint, "videos": videos, "output": tmp_path / "made", "batch_size": 4}
    words = [str(word) for key, value in inputs.items() for word in (f"--{key}", value)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=root, env=environment(root))
    assert done.returncode == -signal.SIGKILL
    before = made(tmp_path / "made")
    stamps = {name: (tmp_path / "made" / name).stat().st_mtime_ns for name in before}
    assert len(before) == 2
    assert all(feature_files.load(tmp_path / "made", name.removesuffix(".npy")).size for name in before)
    assert "2 videos" in extract(videos, tmp_path / "made")
    after = made(tmp_path / "made")
    assert after.keys() == NAMES
    assert {name: after[name] for name in before} == before
    assert {name: (tmp_path / "made" / name).stat().st_mtime_ns for name in before} == stamps
    for name in NAMES:
        assert feature_files.load(tmp_path / "made", name.removesuffix(".npy")).shape[1] == 32


PEAK = """
import json, sys
from pathlib import Path
from vlm_jax import inference
model = inference.load(sys.argv[1])
features = model.extract(sys.argv[2], threads=2)
# Not ru_maxrss, which begins with what the process that forked this one had.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([len(features), int(status["VmHWM"].split()[0]) / 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells a process's peak there")
def test_memory_does_not_grow_with_the_video(root, checkpoint, tmp_path, capsys):
    frames = decode.read_frames(CLIPS / "bunny.mp4", seconds=10, filters="scale=64:64")
    peaks = {}
    for minutes in (3, 30):
        path = tmp_path / f"{minutes}.mp4"
        write_video(path, itertools.islice(itertools.cycle(frames), minutes * 60 * 25), 25)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(checkpoint), str(path)],
            cwd=root,
            env=environment(root),
            text=True,
            capture_output=True,
            check=True,
        )
        rows, peaks[minutes] = json.loads(done.stdout.splitlines()[-1])
        assert rows == -(-minutes * 60 * 5 // 8)
    with capsys.disabled():
        print(f"\npeak memory: {peaks[3]:.0f} MB for 3 minutes, {peaks[30]:.0f} MB for 30")
    assert peaks[30] < peaks[3] + 40

import sys

import pytest

from data_prep import beam
from data_prep.milnce import prepare as milnce
from vlm_jax.errors import DataError

SIZES = "--short_side 80 --smallest_side 64 --segment_seconds 3 --clip_seconds 1.6 --min_time 2 --min_seconds 1.6"


def command(root, output, *arguments):
    clips = root / "data_prep" / "clips"
    inputs = ["--list", clips / "videos.csv", "--videos", clips, "--captions", clips / "captions", "--output", output]
    return ["howto100m", *map(str, inputs), *SIZES.split(), "--num_shards", "5", *arguments]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_beam_makes_what_workers_make(root, tmp_path):
    """Byte for byte, on the packaged clips; with a shard that was there before."""
    milnce.main(command(root, tmp_path / "workers"))
    milnce.main(command(root, tmp_path / "beam", "--shard_index", "3"))
    (before,) = (tmp_path / "beam").glob("*.tfrecord-*")
    written = before.stat().st_mtime_ns
    milnce.main(command(root, tmp_path / "beam", "--beam_pipeline_options", "runner=DirectRunner"))
    assert contents(tmp_path / "beam") == contents(tmp_path / "workers")
    assert before.stat().st_mtime_ns == written


def append(path):
    with open(path, "a") as file:
        file.write("x")


def test_every_task_once_and_by_several_workers(tmp_path):
    paths = [str(tmp_path / str(number)) for number in range(9)]
    beam.make_all(append, paths, "--runner=DirectRunner,direct_num_workers=2, direct_running_mode=multi_threading")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["x"] * 9


def test_nothing_to_do(tmp_path):
    beam.make_all(append, [], "runner=DirectRunner")


def test_a_runner_that_beam_does_not_know():
    with pytest.raises(DataError, match="--beam_pipeline_options 'runner=Typewriter': ") as caught:
        beam.make_all(append, [], "runner=Typewriter")
    assert "\n" not in str(caught.value)


def test_without_beam(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r"needs Apache Beam: pip install 'vlm_jax\[beam\]'$"):
        beam.make_all(append, [], "runner=DirectRunner")

"""Prepares CTRL's data: python data_prep/ctrl.py COMMAND --output DIR ...

    windows   a folder of VIDEO_START_END.npy files, the features of sliding windows -> a set of windows
    queries   a file of sentence vectors (train_clip-sentvec.pkl) -> a split of a set of sentences

The released TACoS data is prepared by

    windows --features Interval64_128_256_512_overlap0.8_c3d_fc6 --frames video_allframes_info.pkl --fps 29.4
    windows --features Interval128_256_overlap0.8_c3d_fc6 --frames video_allframes_info.pkl --fps 29.4
    queries --sentences train_clip-sentvec.pkl --split train --fps 29.4
    queries --sentences test_clip-sentvec.pkl --split test --fps 29.4

each set of windows with an --output of its own, both splits of the sentences with one. Run the same command again after
an interruption: finished shards stay.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from data_prep import shards
from vlm_jax.data.ctrl import QUERY_FEATURES, WINDOW_FEATURES, WINDOWS
from vlm_jax.data.records import DataError, Record, Skip
from vlm_jax.data.windows import parse, window_files
from vlm_jax.interop.ctrl import ClipSentences, clip_sentences
from vlm_jax.interop.rules import ConversionError
from vlm_jax.interop.torch_files import TorchFileError, load_pickle


def windows(arguments: argparse.Namespace) -> None:
    """A set of windows, a record a video."""
    frames = frame_counts(arguments.frames) if arguments.frames else {}
    items = window_items(arguments.features, frames)
    make = functools.partial(window_records, root=arguments.features, dim=arguments.dim, fps=arguments.fps)
    protocol = {"kind": "ctrl_windows", "feature_dim": arguments.dim, "fps": arguments.fps}
    shards.run(shards.Job(arguments.output, "windows", WINDOWS, WINDOW_FEATURES, protocol, items, make), arguments)


def queries(arguments: argparse.Namespace) -> None:
    """A split of a set of sentences, a record a sentence."""
    clips = read_sentences(arguments.sentences, arguments.dim)
    items = [[clip, number] for clip, entry in enumerate(clips) for number in range(max(1, len(entry.vectors)))]
    make = functools.partial(query_records, path=arguments.sentences, dim=arguments.dim, fps=arguments.fps)
    protocol = {"kind": "ctrl_queries", "sentence_dim": arguments.dim, "fps": arguments.fps}
    shards.run(
        shards.Job(arguments.output, "queries", arguments.split, QUERY_FEATURES, protocol, items, make), arguments
    )


def window_items(folder: Path, frames: Mapping[str, int]) -> list[dict[str, Any]]:
    """The files of each video, sorted by name; what is no window is an item without a video.

    Raises:
      DataError: for a folder without windows.
    """
    try:
        found = window_files(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    if not found.names:
        raise DataError(f"{folder}: no file named like VIDEO_START_END.npy among {len(found.skipped)}")
    files: dict[str, list[str]] = {}
    for name, video in zip(found.names, found.videos, strict=True):
        files.setdefault(video, []).append(name)
    items = [
        {"video": video, "files": names, "num_frames": frames.get(video.split(".")[0], 0)}
        for video, names in sorted(files.items())
    ]
    return [*items, *({"video": "", "files": [name], "num_frames": 0} for name in found.skipped)]


def window_records(items: Sequence[Mapping[str, Any]], *, root: Path, dim: int, fps: float) -> Iterator[Record | Skip]:
    """The windows of every video, and the files that are left out."""
    group = 0
    for item in items:
        spans, features = [], []
        for name in item["files"]:
            if not item["video"]:
                yield Skip(name, "not named like a window")
                continue
            try:
                feature = np.load(root / name, allow_pickle=False).reshape(-1).astype(np.float32)
            except (OSError, ValueError, EOFError) as error:
                yield Skip(name, "unreadable", " ".join(str(error).split()))
                continue
            if len(feature) != dim or not np.isfinite(feature).all():
                yield Skip(name, "not a feature", f"{len(feature)} numbers, expected {dim} that are finite")
                continue
            spans.append(parse(name)[1:])
            features.append(feature)
        if spans:
            example = {"video": item["video"], "fps": np.float64(fps), "num_frames": np.int64(item["num_frames"])}
            yield Record({**example, "spans": np.array(spans, np.int64), "features": np.stack(features)}, group)
            group += 1


def query_records(items: Sequence[Sequence[int]], *, path: Path, dim: int, fps: float) -> Iterator[Record | Skip]:
    """Sentence `number` of moment `clip`, and those whose moment cannot be told."""
    clips, group = read_sentences(path, dim), 0
    for clip, number in items:
        entry, span = clips[clip], parse(clips[clip].name)
        if span is None:
            yield Skip(f"{entry.name} {number}", "not named like a moment")
        elif not len(entry.vectors):
            yield Skip(entry.name, "no sentences")
        else:
            place = {"video": span.video, "span": np.array(span[1:], np.float64), "fps": np.float64(fps)}
            yield Record({**place, "text": "", "vector": entry.vectors[number]}, group)
            group += 1


@functools.lru_cache(maxsize=1)
def read_sentences(path: Path, dim: int) -> list[ClipSentences]:
    """The moments of a file of sentence vectors.

    Raises:
      DataError: where it cannot be read or holds something else.
    """
    try:
        return clip_sentences(load_pickle(path, "latin1"), dim)
    except (TorchFileError, ConversionError) as error:
        text = str(error).replace("not a torch file", "not a pickle")
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def frame_counts(path: Path) -> dict[str, int]:
    """How many frames each video has (`video_allframes_info.pkl`).

    Raises:
      DataError: where it cannot be read or holds something else.
    """
    try:
        content = load_pickle(path, "latin1")
    except TorchFileError as error:
        raise DataError(str(error).replace("not a torch file", "not a pickle")) from None
    if not isinstance(content, dict) or not all(isinstance(count, int) for count in content.values()):
        raise DataError(f"{path}: expected a pickled dict of frame counts by video, found a {type(content).__name__}")
    return {name.decode("latin1") if isinstance(name, bytes) else str(name): n for name, n in content.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that these words, or else the command line's, name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("windows", help="a set of windows")
    shards.add_arguments(made, num_shards=16)
    made.add_argument("--features", required=True, type=Path, help="folder of VIDEO_START_END.npy files")
    made.add_argument("--frames", type=Path, help="pickled dict of frame counts by video")
    made.add_argument("--dim", type=int, default=4096, help="numbers of a window (default: %(default)s)")
    made.add_argument("--fps", type=float, default=0.0, help="frames a second, for times in seconds; 0: not known")
    made.set_defaults(run=windows)
    made = commands.add_parser("queries", help="a split of a set of sentences")
    shards.add_arguments(made, num_shards=4)
    made.add_argument("--sentences", required=True, type=Path, help="pickled list of [VIDEO_START_END, [vector, ...]]")
    made.add_argument("--split", required=True, choices=("train", "validation", "test"))
    made.add_argument("--dim", type=int, default=4800, help="longer vectors are cut to this (default: %(default)s)")
    made.add_argument("--fps", type=float, default=0.0, help="frames a second, for times in seconds; 0: not known")
    made.set_defaults(run=queries)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    shards.main(main)

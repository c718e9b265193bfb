"""Prepare CTRL's data: python -m data_prep.ctrl COMMAND --output DIR ...

    windows   a folder of VIDEO_START_END.npy files, the features of sliding windows, or a folder of features from
              launch/extract_features.py -> a set of windows
    queries   a file of sentence vectors (train_clip-sentvec.pkl), or annotations and vectors -> a split of sentences
    demo      the first video of a file of sentence vectors, with its windows -> a folder of the released form

The released TACoS data is prepared by

    windows --features Interval64_128_256_512_overlap0.8_c3d_fc6 --frames video_allframes_info.pkl --fps 29.4
    windows --features Interval128_256_overlap0.8_c3d_fc6 --frames video_allframes_info.pkl --fps 29.4
    queries --sentences train_clip-sentvec.pkl --split train --fps 29.4
    queries --sentences test_clip-sentvec.pkl --split test --fps 29.4

Each set of windows needs its own --output; both splits of the sentences share one. To continue after an interruption,
run the same command again: finished shards are kept. `--check DIR` checks raw or prepared data and writes nothing.
"""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from data_prep import shards
from data_prep.commands import Commands, run_command
from data_prep.ctrl import sentences
from data_prep.ctrl import windows as ctrl_windows
from data_prep.ctrl.check import check
from data_prep.ctrl.sentences import FORMS, PICKLE
from vlm_jax import features as feature_files
from vlm_jax.errors import DataError
from vlm_jax.features import FeatureError
from vlm_jax.systems.ctrl.data import QUERY_FEATURES, WINDOW_FEATURES, WINDOWS


def windows(arguments: argparse.Namespace) -> None:
    """Write a set of windows, one record per video."""
    folder, fps = arguments.features, arguments.fps
    frames = ctrl_windows.frame_counts(arguments.frames) if arguments.frames else {}
    if ctrl_windows.is_own(folder):
        try:
            settings = feature_files.read_settings(folder)
        except FeatureError as error:
            raise DataError(str(error)) from None
        if fps <= 0:
            raise DataError("--fps: say in how many frames a second windows are counted, such as the annotations'")
        items = ctrl_windows.feature_items(folder, frames, arguments.ending)
        made = {"fps": fps, "lengths": arguments.lengths, "overlap": arguments.overlap}
        make = functools.partial(ctrl_windows.feature_records, root=folder, settings=settings, **made)
        stated = {"video_source": settings.source, "video_features": dataclasses.asdict(settings)}
        protocol = {"feature_dim": settings.dim, **made, **stated}
    else:
        items = ctrl_windows.window_items(folder, frames)
        dim = arguments.dim or 4096
        make = functools.partial(ctrl_windows.window_records, root=folder, dim=dim, fps=fps)
        protocol = {"feature_dim": dim, "fps": fps, "video_source": arguments.source}
    if arguments.dim and arguments.dim != protocol["feature_dim"]:
        raise DataError(f"{folder}: features of {protocol['feature_dim']} numbers, --dim asks for {arguments.dim}")
    protocol = {"kind": "ctrl_windows", **protocol}
    sources = {ctrl_windows.FEATURES: folder}
    job = shards.Job(arguments.output, "windows", WINDOWS, WINDOW_FEATURES, protocol, items, make, sources)
    shards.run(job, arguments)


def queries(arguments: argparse.Namespace) -> None:
    """Write a split of a set of sentences, one record per pair of a sentence and a moment."""
    path, fps = arguments.sentences, arguments.fps
    if (arguments.format == PICKLE) != (arguments.vectors is None):
        raise DataError(f"--vectors: {PICKLE} holds vectors itself, all other forms need --vectors")
    if arguments.format == PICKLE:
        dim, source, made = arguments.dim or 4800, arguments.source, None
        clips = sentences.read_sentences(path, dim)
        items = [[clip, number] for clip, entry in enumerate(clips) for number in range(max(1, len(entry.vectors)))]
        make = functools.partial(sentences.clip_records, path=path, dim=dim, fps=fps)
    else:
        found = sentences.read_annotations(path, arguments.format, arguments.durations)
        items = sentences.annotation_items(found, fps)
        vectors = sentences.read_vectors(arguments.vectors)
        dim = arguments.dim or sentences.vector_dim(vectors, items)
        source, made = arguments.source or vectors.source, vectors.settings
        make = functools.partial(sentences.annotation_records, path=arguments.vectors, dim=dim)
    protocol = {"kind": "ctrl_queries", "sentence_dim": dim, "fps": fps, "text_source": source}
    if made:
        protocol["text_features"] = dataclasses.asdict(made)
    sources = {sentences.VECTORS: arguments.vectors} if arguments.vectors else {}
    job = shards.Job(arguments.output, "queries", arguments.split, QUERY_FEATURES, protocol, items, make, sources)
    shards.run(job, arguments)


def demo(arguments: argparse.Namespace) -> None:
    """Write a small folder of files in the released form."""
    found = sentences.write_demo(arguments.sentences, arguments.features, arguments.output, arguments.dim)
    print(f"{arguments.output}: {found[0]}, {found[1]} sentences, {found[2]} windows")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that `words`, by default those of the command line, name."""
    run_command(words, __doc__, check, _add_commands)


def _add_commands(commands: Commands) -> None:
    rate = {"type": float, "default": 0.0, "help": "frames per second, for times in seconds; 0: unknown"}
    named = {"default": "", "help": "name of the encoder behind the features; ours state it (default: none)"}
    made = commands.add_parser("windows", help="a set of windows")
    shards.add_arguments(made, num_shards=16)
    made.add_argument("--features", required=True, type=Path, help="folder of VIDEO_START_END.npy, or of our features")
    made.add_argument("--frames", type=Path, help="pickled dict of frame counts by video")
    made.add_argument("--dim", type=int, help="width of a feature (default: 4096; our features state theirs)")
    made.add_argument("--fps", **rate)
    made.add_argument("--source", **named)
    ours = made.add_argument_group("our own features")
    ours.add_argument(
        "--lengths", type=int, nargs="+", default=[64, 128, 256, 512], help="lengths of windows, in frames at --fps"
    )
    ours.add_argument(
        "--overlap", type=float, default=0.8, help="part that neighbouring windows share (default: %(default)s)"
    )
    ours.add_argument("--ending", default="", help="ending of video names in the annotations, such as .avi")
    made.set_defaults(run=windows)
    made = commands.add_parser("queries", help="a split of a set of sentences")
    shards.add_arguments(made, num_shards=4)
    made.add_argument("--sentences", required=True, type=Path, help="file of sentence vectors, or of annotations")
    made.add_argument("--format", default=PICKLE, choices=FORMS, help="form of that file (default: %(default)s)")
    made.add_argument("--durations", type=Path, help="for charades: csv with the columns id and length")
    made.add_argument("--vectors", type=Path, help="sentence vectors by qid: .npz file, or folder of .npy")
    made.add_argument("--split", required=True, choices=("train", "validation", "test"))
    made.add_argument("--dim", type=int, help="width of a vector (default: 4800, to which released ones are cut)")
    made.add_argument("--fps", **rate)
    made.add_argument("--source", **named)
    made.set_defaults(run=queries)
    made = commands.add_parser("demo", help="one video of released files")
    made.add_argument("--sentences", required=True, type=Path, help="file of sentence vectors")
    made.add_argument("--features", required=True, type=Path, help="folder of VIDEO_START_END.npy files")
    made.add_argument("--output", required=True, type=Path, help="folder to write")
    made.add_argument("--dim", type=int, default=4800, help="longer vectors are cut to this (default: %(default)s)")
    made.set_defaults(run=demo)

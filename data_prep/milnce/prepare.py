"""Prepare MIL-NCE's data: python -m data_prep.milnce COMMAND --output DIR ...

    howto100m   narrated videos and their caption files -> training shards
    youcook2    validation_youcook.csv and videos -> a retrieval set
    msrvtt      msrvtt_test.csv and videos -> a retrieval set
    segments    your own csv (video_path, start, end, text) and videos -> a retrieval set
    hmdb51      hmdb51.csv and videos -> a classification set
    vocabulary  caption files -> a word list

To continue after an interruption, run the same command again: finished shards are kept. `--check DIR` checks raw or
prepared data and writes nothing; `--check DIR --help` lists its options.
"""

import argparse
import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep import shards
from data_prep.commands import Commands, check_folders, run_command
from data_prep.milnce.check import check
from data_prep.milnce.evaluation import (
    classification_records,
    hmdb51_items,
    msrvtt_items,
    retrieval_records,
    segment_items,
    youcook2_items,
)
from data_prep.milnce.narrated import ORIGINAL, Segments, read_captions, training_records
from data_prep.tables import read_rows
from vlm_jax.errors import DataError
from vlm_jax.files import write_atomically, write_json
from vlm_jax.systems.milnce.data import FORMATS
from vlm_jax.systems.milnce.evaluation_data import CLASSIFICATION_FEATURES, RETRIEVAL_FEATURES
from vlm_jax.text import word_list
from vlm_jax.video.segment import DEFAULT_CRF


def howto100m(arguments: argparse.Namespace) -> None:
    """Write training shards."""
    check_folders(arguments, "videos", "captions")
    if arguments.seconds is None:
        arguments.seconds = 0 if arguments.format == ORIGINAL else 16
    segments = Segments(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Segments)})
    protocol = {"kind": "milnce_training", **dataclasses.asdict(segments)}
    make = functools.partial(
        training_records, video_root=arguments.videos, caption_root=arguments.captions, segments=segments
    )
    items = video_list(arguments.list)
    sources = {"videos": arguments.videos, "captions": arguments.captions}
    form = FORMATS[segments.format]
    job = shards.Job(arguments.output, "howto100m", "train", form, protocol, items, make, sources)
    shards.run(job, arguments)


def retrieval(arguments: argparse.Namespace) -> None:
    """Write a retrieval set from the list that the command names."""
    check_folders(arguments, "videos")
    items = {"youcook2": youcook2_items, "msrvtt": msrvtt_items, "segments": segment_items}[arguments.command](
        arguments.csv
    )
    protocol = {name: getattr(arguments, name) for name in ("windows", "num_frames", "fps", "size")}
    protocol["strict"] = arguments.strict
    make = functools.partial(retrieval_records, video_root=arguments.videos, **protocol)
    split = {"youcook2": "validation"}.get(arguments.command, "test")
    protocol = {"kind": "milnce_retrieval", **protocol}
    sources = {"videos": arguments.videos}
    job = shards.Job(arguments.output, arguments.command, split, RETRIEVAL_FEATURES, protocol, items, make, sources)
    shards.run(job, arguments)


def classification(arguments: argparse.Namespace) -> None:
    """Write a classification set."""
    check_folders(arguments, "videos")
    items = hmdb51_items(arguments.csv)
    protocol = {name: getattr(arguments, name) for name in ("windows", "num_frames", "size", "strict")}
    make = functools.partial(classification_records, video_root=arguments.videos, **protocol)
    classes = sorted({item["label"] for item in items})
    protocol = {"kind": "milnce_classification", **protocol, "classes": classes}
    sources, form = {"videos": arguments.videos}, CLASSIFICATION_FEATURES
    shards.run(
        shards.Job(arguments.output, arguments.command, "videos", form, protocol, items, make, sources), arguments
    )


def video_list(path: Path) -> list[str]:
    """Return the column `video_path` of a csv file."""
    return [row["video_path"] for row in read_rows(path, ("video_path",))]


def vocabulary(arguments: argparse.Namespace) -> None:
    """Write a list of the captions' words, most frequent words first."""
    check_folders(arguments, "captions")
    skipped = []

    def sentences() -> Iterator[str]:
        for video in video_list(arguments.list):
            try:
                yield from read_captions(arguments.captions / f"{video.split('.')[0]}.csv").text
            except DataError as error:
                skipped.append(str(error))

    lower = not arguments.keep_case
    counts = word_list.count_words(sentences(), lower=lower)
    words = word_list.most_frequent(counts, arguments.rows - 1)
    if not len(words):
        raise DataError(f"{arguments.captions}: no words in the captions of {arguments.list}")
    padded = np.concatenate([words, [f"<unused {n}>" for n in range(arguments.rows - 1 - len(words))]])
    buffer = io.BytesIO()
    np.save(buffer, padded.astype(np.str_))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, buffer.getvalue())
    write_json(word_list.settings_path(arguments.output), {"lower_case": lower})
    covered = sum(counts[word] for word in words)
    print(f"{arguments.output}: {len(words)} words, for config.text.rows = {arguments.rows}")
    print(f"  they are {100 * covered / counts.total():.1f} % of the {counts.total()} words of the captions")
    if skipped:
        print(f"  {len(skipped)} caption files skipped, such as {skipped[0]}")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that `words`, by default those of the command line, name."""
    run_command(words, __doc__, check, _add_commands)


def _add_commands(commands: Commands) -> None:
    train = commands.add_parser("howto100m", help="training shards")
    shards.add_arguments(train, num_shards=128)
    train.add_argument("--list", required=True, type=Path, help="csv with the column video_path")
    train.add_argument("--videos", required=True, type=Path, help="folder that video_path is relative to")
    train.add_argument("--captions", required=True, type=Path, help="folder with a csv (start, end, text) per video")
    train.add_argument("--fps", type=int, default=5)
    train.add_argument("--short_side", type=int, default=256, help="shorter side of the stored frames")
    train.add_argument("--smallest_side", type=int, default=224, help="videos below this are skipped (or enlarged)")
    train.add_argument("--enlarge", action="store_true", help="enlarge small videos instead")
    train.add_argument(
        "--segment_seconds",
        dest="seconds",
        type=int,
        help="length of a record; 0 keeps videos whole (default: 16; with --format original: 0)",
    )
    train.add_argument("--clip_seconds", type=float, default=3.2, help="length of a training clip")
    train.add_argument("--min_time", type=float, default=5.0, help="shorter captions are widened to this")
    train.add_argument("--max_candidates", type=int, default=8, help="largest K that the records allow")
    train.add_argument("--min_seconds", type=float, default=3.2, help="videos shorter than this are skipped")
    train.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="jpeg",
        help="jpeg and mp4 (H.264): frames are resampled to --fps and scaled to --short_side, so a crop shows more of "
        "a large picture than the reference's; original: videos stay as they are and are cropped as in the reference",
    )
    train.add_argument("--quality", type=int, default=90, help="quality of the JPEG frames")
    train.add_argument(
        "--crf", type=int, default=DEFAULT_CRF, help="quality of the mp4 files: less is better and larger"
    )
    train.add_argument(
        "--epoch", choices=("videos", "segments"), default="videos", help="unit that an epoch visits once"
    )
    train.set_defaults(run=howto100m)
    for name in ("youcook2", "msrvtt", "segments"):
        evaluation = commands.add_parser(name, help="a retrieval set")
        shards.add_arguments(evaluation, num_shards=16)
        evaluation.add_argument("--csv", required=True, type=Path, help="the list of items")
        evaluation.add_argument("--videos", required=True, type=Path, help="root of the videos")
        evaluation.add_argument("--windows", type=int, default=10, help="clips per item")
        evaluation.add_argument("--num_frames", type=int, default=16)
        evaluation.add_argument("--fps", type=int, default=5)
        evaluation.add_argument("--size", type=int, default=224)
        _add_strict(evaluation)
        evaluation.set_defaults(run=retrieval)
    labelled = commands.add_parser("hmdb51", help="a classification set")
    shards.add_arguments(labelled, num_shards=16)
    labelled.add_argument("--csv", required=True, type=Path, help="csv: video_id, label, split1, split2, split3")
    labelled.add_argument("--videos", required=True, type=Path, help="root of the videos, CLASS/VIDEO_ID")
    labelled.add_argument("--windows", type=int, default=10, help="clips per video")
    labelled.add_argument("--num_frames", type=int, default=16)
    labelled.add_argument("--size", type=int, default=224)
    _add_strict(labelled)
    labelled.set_defaults(run=classification)
    words = commands.add_parser("vocabulary", help="a word list")
    words.add_argument("--list", required=True, type=Path, help="csv with the column video_path")
    words.add_argument("--captions", required=True, type=Path, help="folder with a csv per video")
    words.add_argument("--output", required=True, type=Path, help="file to write, .npy")
    words.add_argument("--rows", type=int, default=66250, help="rows of the word table, including padding")
    words.add_argument("--keep_case", action="store_true", help="keep capital letters (default: lower case)")
    words.set_defaults(run=vocabulary)


def _add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="leave damaged videos out (default: keep and list them)")

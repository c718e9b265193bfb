"""Prepare the data of long-term feature banks: python -m data_prep.lfb keyframes --output DIR --split NAME ...

One record per keyframe (a second of a video) holds the frames around it. People, actions and proposals lie in a table
beside the records. AVA, from extracted frames:

    python -m data_prep.lfb keyframes --output data/ava --split train --frames RAWFRAMES \\
        --annotations ava_train_v2.1.csv --excluded ava_train_excluded_timestamps_v2.1.csv \\
        --labels ava_action_list_v2.1_for_activitynet_2018.pbtxt \\
        --proposals ava_dense_proposals_train.FAIR.recall_93.9.pkl

Your own films, annotated in the same columns: `--videos DIR --whole_films` instead of `--frames`, without --excluded.
To continue after an interruption, run the same command again: finished shards are kept. `--check DIR` checks raw or
prepared data and writes nothing; `--check DIR --help` lists its options.
"""

import argparse
import collections
import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep import shards
from data_prep.commands import Commands, check_folders, run_command
from data_prep.lfb import bank, people
from data_prep.lfb.check import check
from data_prep.lfb.frames import Storage, count_frames, film_length, film_records, find_video, folder_records
from data_prep.tables import write_rows
from vlm_jax.data.protocol import PROTOCOL, find_protocol
from vlm_jax.data.record_examples import Split, read_features
from vlm_jax.errors import DataError
from vlm_jax.systems.lfb import annotations
from vlm_jax.systems.lfb.actions import AVA_ACTIONS, EVALUATED, read_actions
from vlm_jax.systems.lfb.annotations import AVA_SECONDS, Fault, Key, Keyframe, Row, Sampling
from vlm_jax.systems.lfb.boxes import ENDINGS
from vlm_jax.systems.lfb.data import FEATURES
from vlm_jax.systems.lfb.keyframes import (
    ANNOTATED_PROPOSALS,
    KIND,
    NAME,
    TRAINING,
    annotations_path,
    excluded_path,
    make_table,
    table_path,
    write_table,
)
from vlm_jax.video.decode import VideoError, versions

ANNOTATED = "annotated"
"""Value of `--proposals` for the boxes of the annotated people."""


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Content of the annotation files of a split.

    Attributes:
      actions: Names of the evaluated actions by id.
      num_classes: Number of columns of the labels.
      keyframes: People by keyframe, without excluded keyframes.
      proposals: Proposals by keyframe.
      excluded: Excluded keyframes.
      num_excluded: Number of annotated keyframes that were left out.
      rows: Rows of the annotation file that can be used.
      faults: Rows that cannot be used, or have a remark.
    """

    actions: Mapping[int, str]
    num_classes: int
    keyframes: Mapping[Key, Keyframe]
    proposals: Mapping[Key, np.ndarray]
    excluded: Collection[Key]
    num_excluded: int
    rows: Sequence[Row]
    faults: Sequence[Fault]


def keyframes(arguments: argparse.Namespace) -> None:
    """Write the shards of a split, its table, and copies of its annotations."""
    sources = {name: getattr(arguments, name) for name in ("frames", "videos") if getattr(arguments, name)}
    check_folders(arguments, *sources)
    storage = make_storage(arguments)
    if arguments.proposals == ANNOTATED and not arguments.annotations:
        raise DataError(f"--proposals {ANNOTATED}: there are no --annotations")
    found = read_annotations(arguments)
    keys = choose_keys(arguments, storage, found)
    protocol = {
        "kind": KIND,
        **{name: getattr(storage.sampling, name) for name in ("num_frames", "interval", "fps")},
        **{name: getattr(storage, name) for name in ("start_second", "end_second", "short_side")},
        "jitter": arguments.jitter,
        "num_classes": found.num_classes,
        "actions": {str(number): name for number, name in found.actions.items()},
        ANNOTATED_PROPOSALS: arguments.proposals == ANNOTATED,
        "labels": arguments.labels.stem if arguments.labels else "ava_v2.1",
        "frames_from": "folders of JPEGs" if arguments.frames else versions(),
    }
    check_kind_of_proposals(arguments)
    make_records = folder_records if arguments.frames else film_records
    make = functools.partial(make_records, **sources, storage=storage)
    job = shards.Job(arguments.output, NAME, arguments.split, FEATURES, protocol, keys, make, sources)
    print_summary(arguments, keys, found)
    shards.run(job, arguments)
    if arguments.finalize or arguments.shard_index is None:
        write_companions(arguments, storage, found, keys)


def check_kind_of_proposals(arguments: argparse.Namespace) -> None:
    """Check that the other splits of the folder have proposals of the same kind.

    Raises:
      DataError: if they have not.
    """
    told, known = arguments.proposals == ANNOTATED, find_protocol(arguments.output).get(ANNOTATED_PROPOSALS)
    if known is not None and known != told:
        kinds = ("found by a detector", f"those of the annotated people (--proposals {ANNOTATED})")
        raise DataError(
            f"--proposals: {arguments.output / PROTOCOL} has boxes {kinds[known]}, these are {kinds[told]}; "
            "prepare all splits of a folder alike"
        )


def make_storage(arguments: argparse.Namespace) -> Storage:
    """Return the settings of frames that the options give.

    Raises:
      DataError: for options that do not fit together.
    """
    start, end = (0, None) if arguments.whole_films else (arguments.start_second, arguments.end_second)
    if end is not None and end <= start:
        raise DataError(f"--end_second: {end}, expected more than --start_second = {start}")
    if arguments.videos and arguments.video_start > start:
        raise DataError(
            f"--video_start: the files begin at second {arguments.video_start}, the first frame is at {start}"
        )
    for name, least in (("num_frames", 1), ("interval", 1), ("fps", 1), ("jitter", 0), ("short_side", 0)):
        if getattr(arguments, name) < least:
            raise DataError(f"--{name}: expected at least {least}, found {getattr(arguments, name)}")
    jitter = arguments.jitter if arguments.split == TRAINING else 0
    sampling = Sampling(arguments.num_frames, arguments.interval, arguments.fps, jitter)
    try:
        arguments.frame_name.format(1, video="a")
    except (IndexError, KeyError, ValueError):
        raise DataError(f"--frame_name: {arguments.frame_name!r}, expected a form such as 'img_{{:05d}}.jpg'") from None
    return Storage(
        sampling, start, end, arguments.video_start, arguments.short_side, arguments.quality, arguments.frame_name
    )


def read_annotations(arguments: argparse.Namespace) -> Annotated:
    """Read actions, annotations, excluded keyframes and proposals.

    Raises:
      DataError: for a file that cannot be used, or chosen actions that have no name.
    """
    actions = read_actions(arguments.labels) if arguments.labels else {n: AVA_ACTIONS[n] for n in EVALUATED}
    all_classes = max(actions) + 1
    chosen = sorted(set(arguments.actions))
    if unknown := [number for number in chosen if number not in actions]:
        raise DataError(f"--actions: {unknown[0]} is not one of the actions of {arguments.labels or 'AVA'}")
    num_classes = len(chosen) + 1 if chosen else all_classes
    seconds = (0, None) if arguments.whole_films else (arguments.start_second, arguments.end_second)
    rows, faults = (
        annotations.read_rows(arguments.annotations, all_classes, seconds) if arguments.annotations else ([], [])
    )
    grouped = annotations.group_rows(rows, num_classes, chosen)
    excluded = annotations.read_excluded(arguments.excluded) if arguments.excluded else set()
    kept = {frame.key: frame for frame in grouped if arguments.keep_excluded or frame.key not in excluded}
    if arguments.proposals == ANNOTATED:
        proposals = {key: annotations.as_proposals(frame.boxes) for key, frame in kept.items()}
    else:
        proposals = annotations.read_proposals(arguments.proposals) if arguments.proposals else {}
    if arguments.annotations and not kept:
        reasons = collections.Counter(fault.reason for fault in faults if not fault.kept).most_common(1)
        why = f"{reasons[0][1]} rows: {reasons[0][0]}" if reasons else f"{len(excluded)} keyframes are excluded"
        raise DataError(f"{arguments.annotations}: no keyframe is left ({why})")
    names = {number: actions[number] for number in chosen} if chosen else actions
    return Annotated(names, num_classes, kept, proposals, excluded, len(grouped) - len(kept), rows, faults)


def choose_keys(arguments: argparse.Namespace, storage: Storage, found: Annotated) -> list[Key]:
    """Return the keyframes to prepare, those of a video together.

    Raises:
      DataError: if there is nothing that names them.
    """
    wanted = arguments.seconds or ("annotated" if arguments.annotations else "proposals")
    if wanted == "annotated":
        keys: Iterable[Key] = found.keyframes
    elif wanted == "proposals":
        keys = sorted(found.proposals)
    else:
        keys = every_second(arguments, storage)
    by_video: dict[str, list[Key]] = {}
    for key in keys:
        by_video.setdefault(key[0], []).append(key)
    if not by_video:
        needed = {"annotated": "--annotations", "proposals": "--proposals"}.get(wanted, "videos in the folder")
        raise DataError(f"--seconds {wanted}: no keyframes; it needs {needed}")
    return [key for keys in by_video.values() for key in keys]


def every_second(arguments: argparse.Namespace, storage: Storage) -> list[Key]:
    """Return every second of every film. A film that cannot be read is listed when its records are made."""
    keys = []
    if arguments.frames:
        films = [(path.name, path) for path in sorted(arguments.frames.iterdir()) if path.is_dir()]
    else:
        films = [(path.stem, path) for path in sorted(arguments.videos.iterdir()) if path.suffix in ENDINGS]
    for video, path in films:
        length = storage.length or film_frames(path, storage)
        keys += [(video, second) for second in range(storage.start_second, storage.last_second(max(length, 1)) + 1)]
    return keys


def film_frames(path: Path | None, storage: Storage) -> int:
    """Return the number of frames of a folder or of a video file; 0 if it cannot be read."""
    if path is None or path.is_dir() or not path.is_file():
        return count_frames(path) if path else 0
    try:
        return film_length(path, storage)
    except VideoError:
        return 0


def print_summary(arguments: argparse.Namespace, keys: Sequence[Key], found: Annotated) -> None:
    """Print what will be prepared, and which annotations cannot be used."""
    people = sum(len(frame.people) for frame in found.keyframes.values())
    videos = len({video for video, _ in keys})
    print(
        f"{arguments.output}, {arguments.split}: {videos} videos, {len(keys)} keyframes, {people} people, "
        f"{found.num_excluded} keyframes excluded, {found.num_classes - 1} actions, {len(found.actions)} of them "
        "evaluated"
    )
    if arguments.proposals == ANNOTATED:
        print("  boxes are those of the annotated people: an evaluation is told where people are")
    missing = sum(key not in found.proposals for key in keys) if found.proposals else 0
    if missing:
        print(f"  {missing} keyframes have no proposals and get the whole frame as their only one")
    for (reason, kept), number in collections.Counter((fault.reason, fault.kept) for fault in found.faults).items():
        print(f"  {number} rows {'kept, but' if kept else 'skipped:'} {reason}")
    if found.faults:
        path = arguments.output / f"{NAME}-{arguments.split}.faults.csv"
        cells = [(*fault[:3], "yes" if fault.kept else "no") for fault in found.faults]
        write_rows(path, ("item", "reason", "detail", "kept"), cells)
        print(f"  each with its line in {path}")


def write_companions(arguments: argparse.Namespace, storage: Storage, found: Annotated, keys: Sequence[Key]) -> None:
    """Write the table of a finished split, copies of its annotations, and the number of frames of every video."""
    folder, split = arguments.output, arguments.split
    names = ("video", "second", "height", "width")
    records = list(read_features(Split(folder, split), {name: FEATURES[name] for name in names}))
    made = [(record["video"].decode(), int(record["second"])) for record in records]
    sizes = [(int(record["height"]), int(record["width"])) for record in records]
    training = split == TRAINING
    table = make_table(made, sizes, found.keyframes, found.proposals, found.num_classes, training)
    write_table(table_path(folder, split), table)
    # Evaluation reads the rows that can be used. Numbers are written so that they are read as the same ones.
    truth = [(*row[1:3], *row.box, row.action, *(() if row.person is None else (row.person,))) for row in found.rows]
    for path, cells in (
        (annotations_path(folder, split), truth),
        (excluded_path(folder, split), sorted(found.excluded)),
    ):
        path.unlink(missing_ok=True)
        if cells:
            write_rows(path, (), [(video, f"{second:04d}", *rest) for video, second, *rest in cells])
    kept = collections.Counter(video for video, _ in made)
    counts, videos = [], []
    for video, number in collections.Counter(video for video, _ in keys).items():
        path = arguments.frames / video if arguments.frames else find_video(arguments.videos, video)
        counts.append(film_frames(path, storage))
        videos.append((video, counts[-1], number, kept[video]))
    write_rows(folder / f"{NAME}-{split}.videos.csv", ("video", "frames", "keyframes", "records"), videos)
    short = sum(frames < (storage.length or 1) for frames in counts)
    print(
        f"  {min(counts)} to {max(counts)} frames per video, {short} videos with fewer than {storage.length or 1}; "
        f"{len(table.people)} people and {len(table.proposals)} proposals in the records"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that `words`, by default those of the command line, name."""
    run_command(words, __doc__, check, _add_commands)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def _add_commands(commands: Commands) -> None:
    bank.add_command(commands)
    people.add_command(commands)
    parser = commands.add_parser("keyframes", help="records of the frames around every keyframe")
    shards.add_arguments(parser, num_shards=64)
    parser.add_argument("--split", required=True, choices=(TRAINING, "val", "test"), help="name of the split")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--frames", type=Path, help="folder with a folder of extracted frames per video")
    where.add_argument("--videos", type=Path, help="folder of video files, called VIDEO.mp4 or the like")
    parser.add_argument(
        "--annotations", type=Path, help="csv: video, second, x1, y1, x2, y2, action, person; no header"
    )
    parser.add_argument("--excluded", type=Path, help="csv of excluded keyframes: video, second")
    parser.add_argument("--keep_excluded", action="store_true", help="keep them, as mmaction2 0.x does in evaluation")
    parser.add_argument(
        "--labels", type=Path, help="names of the evaluated actions, .pbtxt or .csv (default: the 60 of AVA)"
    )
    parser.add_argument("--actions", type=_numbers, default=[], help="train only these actions, such as 12,17,80")
    parser.add_argument(
        "--proposals",
        help="boxes of people: csv (video, second, x1, y1, x2, y2[, score]) or pickle of arrays by 'VIDEO,SECOND'; "
        f"the word '{ANNOTATED}' takes those of --annotations",
    )
    parser.add_argument(
        "--seconds",
        choices=("annotated", "proposals", "all"),
        help="keyframes to prepare (default: annotated, without --annotations those with proposals)",
    )
    parser.add_argument("--whole_films", action="store_true", help="seconds count from the film's start to its end")
    parser.add_argument("--start_second", type=int, default=AVA_SECONDS[0], help="first frame (default: %(default)s)")
    parser.add_argument("--end_second", type=int, default=AVA_SECONDS[1], help="last frame (default: %(default)s)")
    parser.add_argument(
        "--video_start", type=int, default=0, help="second at which video files begin; 900 for files cut as AVA's"
    )
    parser.add_argument(
        "--frame_name", default="img_{:05d}.jpg", help="names of extracted frames (default: %(default)s)"
    )
    parser.add_argument("--fps", type=int, default=30, help="frames per second (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=4, help="frames per clip (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=16, help="frames from one to the next (default: %(default)s)")
    parser.add_argument("--jitter", type=int, default=8, help="largest shift in training (default: %(default)s)")
    parser.add_argument(
        "--short_side",
        type=int,
        default=0,
        help="scale larger frames to this; 320 is enough for training (default: no)",
    )
    parser.add_argument("--quality", type=int, default=95, help="quality of encoded JPEGs (default: %(default)s)")
    parser.set_defaults(run=keyframes)

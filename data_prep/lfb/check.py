"""Check the data of long-term feature banks, raw or prepared: python -m data_prep.lfb --check DIR [options]

Prepared data (DIR holds protocol.json): every record is read and its frames are decoded; tables and annotations are
compared with the records. Raw data: DIR has a folder of extracted frames per video, or video files; --annotations,
--labels and --proposals are read and compared with them. Problems are the usual causes of an mAP near 0.
"""

import argparse
import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from data_prep.check import PREPARED, Found, Problem, Reason, check_each, check_parser, check_prepared, run_check
from data_prep.lfb.frames import count_frames, find_video
from vlm_jax.data.protocol import PROTOCOL, read_protocol
from vlm_jax.errors import DataError, UserError
from vlm_jax.systems.lfb import annotations
from vlm_jax.systems.lfb.actions import AVA_ACTIONS, EVALUATED, read_actions
from vlm_jax.systems.lfb.annotations import AVA_SECONDS, Fault, Key, Sampling, name_of
from vlm_jax.systems.lfb.boxes import ENDINGS
from vlm_jax.systems.lfb.keyframes import KIND, TRAINING, annotations_path, excluded_path, read_table
from vlm_jax.video import decode

_ENDLESS = 1 << 40
THRESHOLD = 0.85
"""Smallest score of proposals that the released models were evaluated with."""

REASONS: dict[str, Reason] = PREPARED | {
    "file": Reason("file cannot be used", "files cannot be used", "repair what is named"),
    "base": Reason(
        "row has the action 0",
        "rows have the action 0",
        "actions are numbered from 1 (1 to 80 in AVA); these seem to be numbered from 0, so add 1 to all of them",
    ),
    "action": Reason(
        "row has an action beyond the list",
        "rows have an action beyond the list",
        "--labels must name the highest id; rows with others are skipped",
    ),
    "absolute": Reason(
        "row has a box outside of 0 to 1",
        "rows have a box outside of 0 to 1",
        "boxes are shares of the frame: divide x by its width and y by its height",
    ),
    "seconds": Reason(
        "row has a second outside of the annotated part",
        "rows have a second outside of the annotated part",
        "AVA counts seconds of the film, 900 to 1800, also in videos that were cut (--video_start 900); for your own "
        "films use --whole_films, or --start_second and --end_second",
    ),
    "row": Reason("row cannot be used", "rows cannot be used", "repair or drop the lines that are named"),
    "remark": Reason("row is odd, but used", "rows are odd, but used", "drop the lines that are named"),
    "video": Reason(
        "annotated video is missing",
        "annotated videos are missing",
        "its keyframes are skipped, and evaluation counts its people as missed; download it",
    ),
    "list": Reason(
        "list of annotations is of other videos",
        "lists of annotations are of other videos",
        "is it the list of this split (train annotations with val videos?), and are files called VIDEO.mp4 or folders "
        "VIDEO?",
    ),
    "classes": Reason(
        "list of actions names all 80 of AVA",
        "lists of actions name all 80 of AVA",
        "AVA evaluates 60 of them; use ava_action_list_v2.1_for_activitynet_2018.pbtxt, or no --labels",
    ),
    "count": Reason(
        "video has too few or too many frames",
        "videos have too few or too many frames",
        "counts depend on the extractor and its version; extract again with: ffmpeg -ss 900 -t 901 -i FILM -r 30 "
        "-q:v 1 img_%05d.jpg",
    ),
    "gap": Reason(
        "folder lacks frames between others", "folders lack frames between others", "extract this video again"
    ),
    "frame": Reason("frame cannot be decoded", "frames cannot be decoded", "extract this video again"),
    "damaged": Reason("video cannot be decoded", "videos cannot be decoded", "download it again"),
    "unmatched": Reason(
        "keyframe has no proposals",
        "keyframes have no proposals",
        "they get the whole frame as their only box; are keys written as 'VIDEO,0902', and is it this split's file?",
    ),
    "empty": Reason(
        "list of proposals is empty", "lists of proposals are empty", "they get the whole frame as their only box"
    ),
    "scores": Reason(
        "file of proposals has no score above the threshold",
        "files of proposals have no score above the threshold",
        "only the best box of every keyframe is used; scores are expected from 0 to 1",
    ),
    "table": Reason(
        "table does not fit its records", "tables do not fit their records", "run the preparation again with --finalize"
    ),
    "record": Reason(
        "record does not have the frames of its second",
        "records do not have the frames of their second",
        "delete its shard (.tfrecord- and .index-) and run the preparation again",
    ),
    "lost": Reason(
        "annotated keyframe has no record",
        "annotated keyframes have no record",
        "evaluation counts their people as missed; skipped.csv has the reasons",
    ),
}


def check(words: Sequence[str]) -> None:
    """Run `--check DIR` with its options. Exit with status 1 if there are problems."""
    parser = check_parser(__doc__)
    parser.add_argument("--annotations", type=Path, help="csv of people and actions")
    parser.add_argument("--excluded", type=Path, help="csv of excluded keyframes")
    parser.add_argument("--labels", type=Path, help="names of the evaluated actions (default: the 60 of AVA)")
    parser.add_argument("--proposals", type=Path, help="csv or pickle of boxes and scores")
    parser.add_argument("--whole_films", action="store_true", help="seconds count from the film's start to its end")
    parser.add_argument("--start_second", type=int, default=AVA_SECONDS[0])
    parser.add_argument("--end_second", type=int, default=AVA_SECONDS[1])
    parser.add_argument("--fps", type=int, default=30, help="frames per second (default: %(default)s)")
    run_check(parser.parse_args(words), _check, REASONS)


def _check(arguments: argparse.Namespace) -> Iterator[Found]:
    if (arguments.check / PROTOCOL).exists():
        yield from check_prepared(arguments.check, check_record, arguments.workers)
        yield from _check_companions(arguments.check)
    else:
        yield from _check_raw(arguments)


def check_record(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    """Yield the problems of a prepared keyframe.

    Raises:
      DataError: for frames that cannot be decoded, or another kind of data.
    """
    del weight
    if protocol.get("kind") != KIND:
        raise DataError(f"kind = {protocol.get('kind')!r}, expected {KIND!r}")
    numbers, frames = record["frame_numbers"], record["frames"]
    size = int(record["height"]), int(record["width"])
    for number, frame in zip(numbers.tolist(), frames, strict=False):
        shape = tuple(tf.io.decode_jpeg(frame, channels=3).shape[:2])
        if shape != size:
            raise DataError(f"frame {number} is {shape[0]} x {shape[1]}, expected {size[0]} x {size[1]}")
    sampling = Sampling(protocol["num_frames"], protocol["interval"], protocol["fps"], 0)
    name = name_of((record["video"].decode(), int(record["second"])))
    needed = np.array(sampling.possible_numbers(int(record["second"]), protocol["start_second"], _ENDLESS))
    if len(numbers) != len(frames) or not len(numbers) or (np.diff(numbers) <= 0).any():
        yield Problem("record", f"{name}: {len(frames)} frames, {len(numbers)} numbers")
    elif needed[0] < numbers[0] or not np.isin(np.minimum(needed, numbers[-1]), numbers).all():
        yield Problem("record", f"{name}: frames {numbers[0]} to {numbers[-1]}, expected {needed[0]} to {needed[-1]}")


def _check_companions(directory: Path) -> Iterator[Found]:
    """Compare the tables and annotations of a prepared data set with its records."""
    content = read_protocol(directory)
    protocol = content["protocol"]
    for split, described in content["splits"].items():
        problems = []
        try:
            table = read_table(directory, split)
        except DataError as error:
            yield Found({"tables": 1}, [Problem("table", str(error))])
            continue
        if len(table) != sum(described["records"]):
            problems.append(
                Problem("table", f"{split}: {len(table)} keyframes for {sum(described['records'])} records")
            )
        problems += _check_classes(f"{directory}: {split}", {int(number) for number in protocol["actions"]})
        found = {table.key(number) for number in range(len(table))}
        if split != TRAINING:
            alone = np.flatnonzero(np.diff(table.first_proposal) == 1)
            alone = [n for n in alone.tolist() if (table.proposed(n, 0.0)[0, :4] == annotations.WHOLE_FRAME).all()]
            problems += [Problem("unmatched", f"{split}: {name_of(table.key(number))}") for number in alone]
        source = annotations_path(directory, split)
        if source.exists():
            seconds = protocol["start_second"], protocol["end_second"]
            rows, _ = annotations.read_rows(source, 1 << 30, seconds)
            excluded_file = excluded_path(directory, split)
            excluded = annotations.read_excluded(excluded_file) if excluded_file.exists() else set()
            wanted = dict.fromkeys((row.video, row.second) for row in rows if str(row.action) in protocol["actions"])
            problems += [Problem("lost", f"{split}: {name_of(key)}") for key in wanted if key not in found | excluded]
        yield Found({"tables": 1, "people": len(table.people), "proposals": len(table.proposals)}, problems)


def _check_classes(place: str, ids: set[int]) -> list[Problem]:
    return [Problem("classes", place)] if ids == set(AVA_ACTIONS) else []


def _check_raw(arguments: argparse.Namespace) -> Iterator[Found]:
    seconds = (0, None) if arguments.whole_films else (arguments.start_second, arguments.end_second)
    actions = dict.fromkeys(EVALUATED, "")
    if arguments.labels:
        try:
            actions = read_actions(arguments.labels)
            yield Found({"actions": len(actions)}, _check_classes(str(arguments.labels), set(actions)))
        except UserError as error:
            yield Found({"lists": 1}, [Problem("file", str(error))])
    keys: list[Key] = []
    if arguments.annotations:
        try:
            rows, faults = annotations.read_rows(arguments.annotations, max(actions) + 1, seconds)
            keys = list(dict.fromkeys((row.video, row.second) for row in rows))
            yield Found({"rows": len(rows) + sum(not fault.kept for fault in faults)}, list(map(_problem, faults)))
            excluded = annotations.read_excluded(arguments.excluded) if arguments.excluded else set()
            keys = [key for key in keys if key not in excluded]
        except UserError as error:
            yield Found({"lists": 1}, [Problem("file", str(error))])
    if arguments.proposals:
        yield from _check_proposals(arguments.proposals, keys)
    yield from _check_videos(arguments, keys, seconds)


def _problem(fault: Fault) -> Problem:
    """Return the problem of a row that `read_rows` skipped or has a remark on."""
    if fault.kept:
        return Problem("remark", f"{fault.detail} ({fault.reason})")
    if fault.reason.startswith("action"):
        cells = fault.detail.rpartition(": ")[2].split(",")
        return Problem("base" if cells[6].strip() == "0" else "action", fault.detail)
    beginnings = {"box outside": "absolute", "second": "seconds"}
    kind = next((kind for text, kind in beginnings.items() if fault.reason.startswith(text)), "row")
    return Problem(kind, fault.detail if kind != "row" else f"{fault.detail} ({fault.reason})")


def _check_proposals(path: Path, keys: Sequence[Key]) -> Iterator[Found]:
    try:
        proposals = annotations.read_proposals(path)
    except (UserError, OSError) as error:
        yield Found({"proposals": 0}, [Problem("file", str(error))])
        return
    problems = [Problem("empty", f"{path}: {name_of(key)}") for key, boxes in proposals.items() if not len(boxes)]
    problems += [Problem("unmatched", name_of(key)) for key in keys if key not in proposals]
    best = max((float(boxes[:, 4].max()) for boxes in proposals.values() if len(boxes)), default=0.0)
    if proposals and best < THRESHOLD:
        problems.append(Problem("scores", f"{path}: the highest score is {best:g}, the threshold {THRESHOLD:g}"))
    yield Found({"proposals": sum(map(len, proposals.values()))}, problems)


@dataclasses.dataclass(frozen=True)
class Film:
    """Video whose frames are checked.

    Attributes:
      path: Folder of its frames, or its file.
      needed: Number of the last frame that a keyframe needs, 1 if unknown.
      most: Largest number of frames that it should have.
    """

    path: Path
    needed: int
    most: int


def _check_videos(
    arguments: argparse.Namespace, keys: Sequence[Key], seconds: tuple[int, int | None]
) -> Iterator[Found]:
    directory, sampling = arguments.check, Sampling(fps=arguments.fps)
    by_video: dict[str, list[int]] = collections.defaultdict(list)
    for video, second in keys:
        by_video[video].append(second)
    if not arguments.annotations:
        found = (path for path in sorted(directory.iterdir()) if path.is_dir() or path.suffix in ENDINGS)
        by_video |= {path.name.removesuffix(path.suffix) if path.is_file() else path.name: [] for path in found}
    films, missing = [], []
    for video, wanted in by_video.items():
        path = directory / video if (directory / video).is_dir() else find_video(directory, video)
        if path is None:
            missing.append(video)
            continue
        length = _ENDLESS if seconds[1] is None else arguments.fps * (seconds[1] - seconds[0])
        last = sampling.possible_numbers(max(wanted), seconds[0], length)[-1] if wanted else 1
        # The end of an own film is not known; AVA's videos were cut a second after the last one.
        films.append(Film(path, 1, _ENDLESS) if seconds[1] is None else Film(path, last, length + 2 * arguments.fps))
    if missing and len(missing) * 2 > len(by_video):
        detail = f"{len(missing)} of {len(by_video)} annotated videos are not in {directory}, such as {missing[0]}"
        yield Found({}, [Problem("list", detail)])
    else:
        yield Found({}, [Problem("video", f"{directory / video}") for video in missing])
    yield from check_each(check_film, films, arguments.workers, "checking videos")


def check_film(film: Film) -> Found:
    """Check the number of frames of a video, and that it can be decoded."""
    counted = {"videos": 1}
    if film.path.is_file():
        try:
            decode.probe(film.path)
        except decode.VideoError as error:
            return Found(counted, [Problem("damaged", str(error))])
        return Found(counted)
    return Found(counted, list(_folder_problems(film)))


def _folder_problems(film: Film) -> Iterable[Problem]:
    count = count_frames(film.path)
    names = sorted(path.name for path in film.path.glob("*.jpg"))
    if not film.needed <= count <= film.most:
        most = f" and at most {film.most} are expected" if film.most < _ENDLESS else ""
        yield Problem("count", f"{film.path}: {count} frames, its keyframes need {film.needed}{most}")
    if not names:
        return
    digits = [int("".join(filter(str.isdigit, name.rpartition("_")[2])) or 0) for name in (names[0], names[-1])]
    if digits[1] - digits[0] + 1 != count or digits[0] != 1:
        yield Problem("gap", f"{film.path}: {count} frames, the first is {names[0]}, the last {names[-1]}")
    for name in dict.fromkeys((names[0], names[-1])):
        try:
            tf.io.decode_jpeg((film.path / name).read_bytes())
        except tf.errors.InvalidArgumentError:
            yield Problem("frame", str(film.path / name))

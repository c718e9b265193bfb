"""Check MIL-NCE's data, raw or prepared: python -m data_prep.milnce --check DIR [options]

Prepared data (DIR holds protocol.json): every record is read and decoded. Raw data: every video is decoded from end to
end, every caption file is read. The videos are those of the lists in DIR (videos.csv with video_path,
validation_youcook.csv, msrvtt_test.csv, hmdb51.csv, or your own video_path,start,end,text), or all without a list.
"""

import argparse
import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from data_prep.check import PREPARED, Found, Problem, Reason, check_each, check_parser, check_prepared, run_check
from data_prep.milnce.evaluation import hmdb51_items, msrvtt_items, segment_items, youcook2_items
from data_prep.milnce.narrated import Captions, read_captions
from data_prep.tables import MISSING, read_rows
from vlm_jax.data.protocol import PROTOCOL
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce.data import clip_weights
from vlm_jax.video import decode, segment

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".flv", ".wmv", ".ogv")
LATE = 1.0
"""Seconds by which a caption may outlast its video; the last caption is often shown longer than that."""

_SKIPPED = "the preparation leaves such videos out; "
REASONS: dict[str, Reason] = PREPARED | {
    "missing": Reason(
        "video is missing", "videos are missing", _SKIPPED + "is --videos the folder that the list means?"
    ),
    "empty": Reason("video has no bytes", "videos have no bytes", _SKIPPED + "download them again"),
    "unreadable": Reason("video cannot be decoded", "videos cannot be decoded", _SKIPPED + "download them again"),
    "no video stream": Reason(
        "file has no video in it", "files have no video in them", _SKIPPED + "are they sound only?"
    ),
    "no frames": Reason("video has no frames", "videos have no frames", _SKIPPED + "download them again"),
    "truncated": Reason("video is cut off", "videos are cut off", _SKIPPED + "download them again"),
    "changing size": Reason(
        "video changes its size", "videos change their size", _SKIPPED + "re-encode them with ffmpeg"
    ),
    "too small": Reason("video is too small", "videos are too small", _SKIPPED + "--enlarge keeps them"),
    "too short": Reason(
        "video is shorter than a clip",
        "videos are shorter than a clip",
        _SKIPPED + "--min_seconds sets what is too short",
    ),
    "no captions": Reason(
        "video has no captions",
        "videos have no captions",
        _SKIPPED + "is --captions the folder of the caption files, and are they called as the videos, with .csv?",
    ),
    "bad captions": Reason(
        "caption file cannot be read",
        "caption files cannot be read",
        _SKIPPED + "they need the columns start, end (seconds) and text",
    ),
    "encoding": Reason("file is not UTF-8", "files are not UTF-8", "convert them, as with iconv -f latin1 -t utf-8"),
    "backwards": Reason(
        "caption file has rows that end before they begin",
        "caption files have rows that end before they begin",
        "swap or drop these rows",
    ),
    "after the end": Reason(
        "caption file has rows that begin after the video's end",
        "caption files have rows that begin after the video's end",
        "their clips are black; drop the rows, or get the whole video",
    ),
    "beyond the end": Reason(
        "caption file has rows that end after the video's end",
        "caption files have rows that end after the video's end",
        "their clips may be black at the end; are they captions of this video, in seconds?",
    ),
    "order": Reason(
        "caption file is not in time order",
        "caption files are not in time order",
        "sort the rows by start: candidates are neighbours in the file",
    ),
    "no text": Reason(
        "caption file has rows without text",
        "caption files have rows without text",
        "they are read as the word 'nan'; drop the rows",
    ),
    "list": Reason("list cannot be used", "lists cannot be used", "repair the line that is named"),
    "twice": Reason("video is listed twice", "videos are listed twice", "drop the second line"),
    "shared captions": Reason(
        "caption file belongs to several videos",
        "caption files belong to several videos",
        "up to the first dot their paths are the same; rename the videos",
    ),
    "unused captions": Reason(
        "caption file belongs to no video of the list",
        "caption files belong to no video of the list",
        "add the video to the list, or remove the file",
    ),
    "captions": Reason(
        "record has captions that do not fit it",
        "records have captions that do not fit it",
        "delete its shard (.tfrecord- and .index-) and run the preparation again",
    ),
    "black": Reason(
        "record has captions that begin after the video's end",
        "records have captions that begin after the video's end",
        "their clips are black; repair the caption file and prepare the data again",
    ),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A raw video with its captions.

    Attributes:
      paths: Possible paths, tried in order.
      captions: Path of its caption file, if it has one.
      rows: Rows of an evaluation list: start, end (seconds; None for the video's end), text.
      place: Name of the list in problems of `rows`.
      smallest_side: Least shorter side that training needs, pixels; 0 for evaluation.
      min_seconds: Least duration that training needs, seconds; 0 for evaluation.
    """

    paths: tuple[Path, ...]
    captions: Path | None = None
    rows: tuple[tuple[float, float | None, str], ...] = ()
    place: str = ""
    smallest_side: int = 0
    min_seconds: float = 0.0


def check(words: Sequence[str]) -> None:
    """Run `--check DIR` with its options. Exit with status 1 if there are problems."""
    parser = check_parser(__doc__)
    parser.add_argument("--list", type=Path, help="the only list to check (default: those in DIR)")
    parser.add_argument("--videos", type=Path, help="root of the videos (default: DIR/videos, else DIR)")
    parser.add_argument("--captions", type=Path, help="folder of the caption files (default: DIR/captions, else DIR)")
    parser.add_argument(
        "--smallest_side", type=int, default=224, help="least side of training videos (default: %(default)s)"
    )
    parser.add_argument(
        "--min_seconds", type=float, default=3.2, help="least length of training videos (default: %(default)s)"
    )
    run_check(parser.parse_args(words), _check, REASONS)


def _check(arguments: argparse.Namespace) -> Iterator[Found]:
    if (arguments.check / PROTOCOL).exists():
        return check_prepared(arguments.check, check_record, arguments.workers)
    return _check_raw(arguments)


def check_record(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    """Yield the problems of a prepared record.

    Raises:
      DataError: for frames that cannot be decoded, or an unknown kind of data.
    """
    kinds = {"milnce_training": _training, "milnce_retrieval": _retrieval, "milnce_classification": _classification}
    if protocol.get("kind") not in kinds:
        raise DataError(f"kind = {protocol.get('kind')!r} is not one of {', '.join(kinds)}")
    yield from kinds[protocol["kind"]](record, protocol, weight)


def _training(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    size = int(record["height"]), int(record["width"])
    if "video" in record:
        try:
            with closing(decode.stream_frames(record["video"], fps=protocol["fps"])) as frames:
                count = sum(1 for _ in frames)
            info = decode.probe(record["video"])
        except decode.VideoError as error:
            raise DataError(str(error)) from error
        if (info.height, info.width) != size:
            raise DataError(f"frames of {(info.height, info.width)}, expected {size}")
    elif "mp4" in record:
        try:
            count = segment.segment_length(record["mp4"])
            shown = segment.decode_segment(record["mp4"], 0, count).shape[1:3] if count else size
        except segment.SegmentError as error:
            raise DataError(str(error)) from error
        if shown != size:
            raise DataError(f"frames of {shown}, expected {size}")
    else:
        count = len(record["frames"])
        _expect_size(record["frames"], size, tf.io.decode_jpeg)
    start, end = record["caption_start"], record["caption_end"]
    seeks = int(record["seek_first"]), int(record["seek_last"])
    weights = clip_weights(start, end, seeks, protocol["min_time"], protocol["clip_seconds"])
    if not len(start) == len(end) == len(record["caption_text"]) <= int(record["caption_total"]):
        yield Problem("captions", f"{len(start)} starts, {len(end)} ends, {len(record['caption_text'])} texts")
    elif not np.isclose(weights.sum(), weight) or weight <= 0:
        yield Problem("captions", f"{weights.sum():g} clips begin in it, the index says {weight:g}")
    elif (end < start).any():
        number = int(np.argmax(end < start))
        yield Problem("captions", f"one ends at {end[number]:g} s and begins at {start[number]:g} s")
    clip_frames = int(np.ceil(protocol["clip_seconds"] * protocol["fps"]))
    last = int(record["start"]) + count / protocol["fps"]
    # A record has too few frames for its last clip only if the video ended there.
    late = np.flatnonzero((weights > 0) & (start >= last))
    if count < (seeks[1] - int(record["start"])) * protocol["fps"] + clip_frames and len(late):
        name = record["video_id"].decode()
        yield Problem("black", f"{name} ends at {last:g} s, a caption begins at {start[late[0]]:g} s")


def _retrieval(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    del weight
    _expect_size(record["frames"], (protocol["size"], protocol["size"]), tf.io.decode_png)
    if len(record["frames"]) != protocol["windows"] * protocol["num_frames"]:
        raise DataError(f"{len(record['frames'])} frames, expected {protocol['windows']} x {protocol['num_frames']}")
    start, end = float(record["start"]), float(record["end"])
    if end < start or (record["clip_starts"] < start).any() or (record["clip_starts"] > max(start, end)).any():
        yield Problem("captions", f"{record['video_id'].decode()}: from {start:g} to {end:g} s")


def _classification(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    del weight
    _expect_size(record["frames"], (protocol["size"], protocol["size"]), tf.io.decode_png)
    windows = record["windows"]
    if len(windows) != protocol["windows"] * protocol["num_frames"] or windows.max() >= len(record["frames"]):
        raise DataError(f"windows of {len(windows)} frames up to {windows.max()}; {len(record['frames'])} are there")
    if record["label"].decode() not in protocol["classes"]:
        yield Problem("captions", f"{record['video_path'].decode()}: class {record['label'].decode()!r}")


def _expect_size(frames: Sequence[bytes], size: tuple[int, int], read: Callable[..., tf.Tensor]) -> None:
    for number, data in enumerate(frames):
        shape = read(data, channels=3).shape
        if tuple(shape) != (*size, 3):
            raise DataError(f"frame {number} is {shape[0]} x {shape[1]}, expected {size[0]} x {size[1]}")


def _check_raw(arguments: argparse.Namespace) -> Iterator[Found]:
    directory = arguments.check
    videos = arguments.videos or _existing(directory / "videos", directory)
    captions = arguments.captions or _existing(directory / "captions", directory)
    lists = [arguments.list] if arguments.list else sorted(directory.glob("*.csv"))
    sources, known = [], 0
    for path in lists:
        try:
            kind = _kind(path)
            if kind is None and not arguments.list:
                continue
            known += 1
            if kind is None:
                raise DataError(f"{path}: its columns are those of no list that is known; --help names them")
            if kind == "videos":
                names = [row["video_path"] for row in read_rows(path, ("video_path",))]
                yield _check_names(path, names, captions)
                sources += _training_sources(names, videos, captions, arguments)
            else:
                sources += _evaluation_sources(path, kind, videos)
        except DataError as error:
            yield Found({"lists": 1}, [_unreadable(error, "list")])
    if not known:
        names = sorted(str(path.relative_to(videos)) for path in videos.rglob("*") if path.suffix.lower() in ENDINGS)
        if not names:
            raise DataError(f"--check {directory}: no {PROTOCOL}, no list that is known, and no video below {videos}")
        yield _check_names(videos, names, captions)
        sources = _training_sources(names, videos, captions, arguments)
    yield from check_each(check_source, sources, arguments.workers, "checking videos")


def _existing(folder: Path, otherwise: Path) -> Path:
    return folder if folder.is_dir() else otherwise


def _kind(path: Path) -> str | None:
    """Return the kind of a list by its columns, None for other files."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            columns = set(file.readline().strip().split(","))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 csv file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    kinds = {
        "youcook2": {"end", "start", "task", "text", "video_id"},
        "msrvtt": {"key", "vid_key", "video_id", "sentence"},
        "hmdb51": {"video_id", "label", "split1", "split2", "split3"},
        "segments": {"video_path", "start", "end", "text"},
        "videos": {"video_path"},
    }
    return next((kind for kind, needed in kinds.items() if needed <= columns), None)


def _check_names(path: Path, names: Sequence[str], captions: Path) -> Found:
    """Check the names in a list of training videos, and the names of the caption files."""
    problems = [Problem("twice", f"{path}: {name}") for name, count in collections.Counter(names).items() if count > 1]
    by_stem = collections.defaultdict(list)
    for name in dict.fromkeys(names):
        by_stem[name.split(".")[0]].append(name)
    for stem, sharing in by_stem.items():
        if len(sharing) > 1:
            problems.append(Problem("shared captions", f"{captions / stem}.csv: {', '.join(sharing)}"))
    # Among other csv files, a caption file without a video cannot be recognised.
    for file in sorted(captions.rglob("*.csv")) if captions != path.parent and captions != path else ():
        if str(file.relative_to(captions).with_suffix("")) not in by_stem:
            problems.append(Problem("unused captions", str(file)))
    return Found({"lists": 1}, problems)


def _training_sources(
    names: Sequence[str], videos: Path, captions: Path, arguments: argparse.Namespace
) -> list[Source]:
    needs = arguments.smallest_side, arguments.min_seconds
    return [
        Source((videos / name,), captions / f"{name.split('.')[0]}.csv", (), "", *needs)
        for name in dict.fromkeys(names)
    ]


def _evaluation_sources(path: Path, kind: str, videos: Path) -> list[Source]:
    """Return the videos of an evaluation list, each once with all its rows, so that none is decoded twice."""
    if kind == "hmdb51":
        return [Source((videos / item["path"],)) for item in hmdb51_items(path)]
    rows = collections.defaultdict(list)
    for item in {"youcook2": youcook2_items, "msrvtt": msrvtt_items, "segments": segment_items}[kind](path):
        rows[tuple(item["paths"])].append((item["start"], item["end"], item["text"]))
    return [
        Source(tuple(videos / name for name in paths), None, tuple(said), f"{path}, {paths[0]}")
        for paths, said in rows.items()
    ]


def check_source(source: Source) -> Found:
    """Check a raw video: decode it from end to end, read its captions, and compare their times."""
    path = next((path for path in source.paths if path.is_file()), source.paths[0])
    problems, duration = [], None
    try:
        info = decode.probe(path)
        duration = info.duration
        if min(info.width, info.height) < source.smallest_side:
            problems.append(
                Problem("too small", f"{path}: {info.width}x{info.height}, needs {source.smallest_side} on each side")
            )
        if duration < source.min_seconds:
            problems.append(Problem("too short", f"{path}: {duration:.2f} s, needs {source.min_seconds:g} s"))
        # Every frame is decoded, but only one per second is converted.
        with closing(decode.stream_frames(path, fps=1)) as frames:
            collections.deque(frames, maxlen=0)
    except decode.VideoError as error:
        problems.append(Problem(error.reason, str(error)))
    rows, place = source.rows, source.place
    if source.captions:
        place = str(source.captions)
        try:
            if not source.captions.is_file():
                raise FileNotFoundError
            said = read_captions(source.captions)
            rows = _rows(said)
            if not rows:
                problems.append(Problem("no captions", f"{source.captions}: no rows"))
        except FileNotFoundError:
            problems.append(Problem("no captions", f"{source.captions}: no such file"))
        except DataError as error:
            problems.append(_unreadable(error, "bad captions"))
    problems += _check_rows(rows, place, path, duration, ordered=source.captions is not None)
    return Found({"videos": 1, "captions": sum(bool(text) for _, _, text in rows)}, problems)


def _rows(captions: Captions) -> tuple[tuple[float, float | None, str], ...]:
    return tuple(zip(captions.start.tolist(), captions.end.tolist(), captions.text, strict=True))


def _unreadable(error: DataError, reason: str) -> Problem:
    return Problem("encoding" if "not a UTF-8" in str(error) else reason, str(error))


def _check_rows(
    rows: Sequence[tuple[float, float | None, str]], place: str, path: Path, duration: float | None, *, ordered: bool
) -> Iterator[Problem]:
    """Yield a problem per reason for captions with wrong times or texts: the first row, and the number of others."""
    wrong: dict[str, list[int]] = collections.defaultdict(list)
    for number, (start, end, text) in enumerate(rows):
        if end is not None and end < start:
            wrong["backwards"].append(number)
        if duration is not None and start >= duration:
            wrong["after the end"].append(number)
        elif duration is not None and end is not None and end > duration + LATE:
            wrong["beyond the end"].append(number)
        if ordered and number and start < rows[number - 1][0]:
            wrong["order"].append(number)
        if not text.strip() or text in MISSING:
            wrong["no text"].append(number)
    for reason, numbers in wrong.items():
        start, end, _ = rows[numbers[0]]
        times = f"{start:g} s" if end is None else f"{start:g} to {end:g} s"
        more = f" and {len(numbers) - 1} more" if numbers[1:] else ""
        ends = f"; {path.name} ends at {duration:.2f} s" if "end" in reason else ""
        yield Problem(reason, f"{place}: row {numbers[0] + 1} ({times}){more}{ends}")

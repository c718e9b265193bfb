"""Prepares MIL-NCE's data: python data_prep/milnce.py COMMAND --output DIR ...

    howto100m   narrated videos and their caption files -> training shards
    youcook2    validation_youcook.csv and videos -> a retrieval set
    msrvtt      msrvtt_test.csv and videos -> a retrieval set
    segments    your own csv (video_path, start, end, text) and videos -> a retrieval set
    vocabulary  caption files -> a word list

Run the same command again after an interruption: finished shards stay.
"""

import argparse
import csv
import dataclasses
import functools
import io
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from data_prep import shards
from vlm_jax.data import images
from vlm_jax.data.milnce import RETRIEVAL_FEATURES, TRAINING_FEATURES, clip_weights
from vlm_jax.data.records import DataError, Record, Skip, write_atomically
from vlm_jax.text import captions, word_list
from vlm_jax.video import decode, sampling

MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
"""Cells that the reference's csv reader (pandas) takes for missing; they become the word 'nan'."""


LONGEST = 1e8
"""Seconds; a time beyond is a mistake."""


@dataclasses.dataclass(frozen=True)
class Captions:
    """A video's narration in time order, seconds."""

    start: np.ndarray
    end: np.ndarray
    text: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Segments:
    """How training records are cut.

    Attributes:
      fps: Frames a second that are kept.
      short_side: Height or width, whichever is less, of the frames, even; smaller ones are not enlarged.
      smallest_side: Videos with a smaller side than this are skipped, or enlarged to it; even.
      enlarge: Which of the two.
      seconds: Seek seconds in a record; 0 keeps a video whole.
      clip_seconds: Longest clip that is read, by which a record overlaps the next.
      min_time: Captions shorter than this are widened, as in training.
      max_candidates: Largest K that the records allow.
      min_seconds: Videos shorter than this are skipped.
      quality: Of the JPEG frames.
      epoch: What an epoch visits once: `videos`, as the reference, or `segments`, for few videos.

    Raises:
      DataError: for numbers that make no sense.
    """

    fps: int
    short_side: int
    smallest_side: int
    enlarge: bool
    seconds: int
    clip_seconds: float
    min_time: float
    max_candidates: int
    min_seconds: float
    quality: int
    epoch: str

    def __post_init__(self) -> None:
        sides = self.smallest_side, self.short_side
        if not 2 <= sides[0] <= sides[1] or sides[0] % 2 or sides[1] % 2:
            raise DataError(f"--smallest_side, --short_side: expected even numbers, the first no more, found {sides}")
        for name in ("fps", "clip_seconds", "max_candidates", "quality"):
            if getattr(self, name) <= 0:
                raise DataError(f"--{name}: expected more than 0, found {getattr(self, name)}")

    @property
    def clip_frames(self) -> int:
        """Frames of the longest clip."""
        return math.ceil(self.clip_seconds * self.fps)


def read_rows(path: Path | str | Iterable[str], columns: Sequence[str], name: str = "") -> list[dict[str, str]]:
    """Reads a csv file with a header.

    Raises:
      DataError: naming the file and the column that is missing, or what cannot be read.
    """
    name = name or str(path)
    try:
        lines = io.StringIO(Path(path).read_text(encoding="utf-8-sig")) if isinstance(path, str | Path) else path
        reader = csv.DictReader(lines)
        found = reader.fieldnames or []
        absent = [column for column in columns if column not in found]
        if absent:
            raise DataError(f"{name}: no column {absent[0]!r}; it has {', '.join(found) or 'none'}")
        rows = list(reader)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: not a UTF-8 csv file ({error})") from None
    short = next((number for number, row in enumerate(rows, start=2) if None in (row[c] for c in columns)), None)
    if short:
        raise DataError(f"{name}: line {short} has fewer cells than the header")
    return rows


def read_captions(path: Path | Iterable[str], name: str = "") -> Captions:
    """Reads a caption file: columns `start` and `end` (seconds) and `text`; others are ignored.

    Raises:
      DataError: where it cannot be read, or a time is no number.
    """
    rows = read_rows(path, ("start", "end", "text"), name)
    times: dict[str, list[float]] = {"start": [], "end": []}
    for number, row in enumerate(rows, start=2):
        for key, values in times.items():
            values.append(_seconds(row[key], f"{name or path}: line {number}, column {key!r}"))
    return Captions(np.array(times["start"]), np.array(times["end"]), tuple(_text(row["text"]) for row in rows))


def training_records(
    videos: Sequence[str], *, video_root: Path, caption_root: Path, segments: Segments
) -> Iterator[Record | Skip]:
    """Segments of every video, or why it gives none."""
    group = -1
    for video in videos:
        try:
            captions_path = caption_root / f"{video.split('.')[0]}.csv"
            if not captions_path.is_file():
                raise _Skipped("no captions", f"{captions_path}: no such file")
            narration = read_captions(captions_path)
            if not narration.text:
                raise _Skipped("no captions", f"{captions_path}: no rows")
            made = list(_cut(video_root / video, video, narration, segments))
        except _Skipped as skip:
            yield Skip(video, *skip.args)
        except DataError as error:
            yield Skip(video, "bad captions", str(error))
        except decode.VideoError as error:
            yield Skip(video, error.reason, str(error))
        else:
            group += 1
            for number, (example, weight) in enumerate(made):
                group += segments.epoch == "segments" and number > 0
                yield Record(example, group, weight)


def retrieval_records(
    items: Sequence[dict[str, object]], *, video_root: Path, windows: int, num_frames: int, fps: int, size: int
) -> Iterator[Record | Skip]:
    """The W clips of every item (`paths` tried in order, `video_id`, `text`, `start`, `end`), or why it gives none."""
    for group, item in enumerate(items):
        name = f"{item['video_id']} {item['start']}-{item['end']}"
        paths = [video_root / path for path in item["paths"]]
        path = next((path for path in paths if path.is_file()), paths[0])
        try:
            end = decode.probe(path).duration if item["end"] is None else item["end"]
            starts = sampling.clip_starts(item["start"], end, windows, num_frames / fps)
            clips = decode.read_clips(path, starts, num_frames, fps, decode.square_crop(size))
        except decode.VideoError as error:
            yield Skip(name, error.reason, str(error))
            continue
        frames = [images.encode_png(frame) for clip in clips for frame in clip]
        example = {"video_id": item["video_id"], "text": item["text"], "start": item["start"], "end": end}
        yield Record({**example, "clip_starts": starts, "frames": frames}, group)


class _Skipped(Exception):
    """Reason and detail of an item that gives no record."""


def _cut(path: Path, video: str, narration: Captions, segments: Segments) -> Iterator[tuple[dict[str, object], float]]:
    """A video's segments and their weights. Frames are decoded once, up to the last one that a clip can show."""
    info = decode.probe(path)
    side = min(info.width, info.height)
    if side < segments.smallest_side and not segments.enlarge:
        raise _Skipped("too small", f"{path}: {info.width}x{info.height}, needs {segments.smallest_side}")
    if info.duration < segments.min_seconds:
        raise _Skipped("too short", f"{path}: {info.duration:.2f} s, needs {segments.min_seconds:g} s")
    enlarge = side < segments.smallest_side
    scale = decode.short_side(segments.smallest_side if enlarge else segments.short_side, enlarge=enlarge)
    ranges = [
        captions.seek_range(captions.clip_interval(start, end, segments.min_time), segments.clip_seconds)
        for start, end in zip(narration.start, narration.end, strict=True)
    ]
    last_seek = max(last for _, last in ranges)
    span = segments.seconds or last_seek + 1
    first, frames, size = 0, [], (0, 0)
    with closing(decode.stream_frames(path, fps=segments.fps, filters=scale)) as stream:
        for frame in stream:
            size = frame.shape[:2]
            frames.append(images.encode_jpeg(frame, segments.quality))
            seeks = first, min(first + span - 1, last_seek)
            # No fewer than a second's frames: what is left over then begins where the next segment does.
            if len(frames) == (seeks[1] - first) * segments.fps + max(segments.clip_frames, segments.fps):
                yield from _segment(video, narration, segments, seeks, frames, size)
                if seeks[1] == last_seek:
                    return
                first, frames = first + span, frames[span * segments.fps :]
    if not frames and first == 0:
        raise _Skipped("no frames", f"{path}: nothing was decoded")
    # Clips that begin after the end are black; they belong to the last segment.
    yield from _segment(video, narration, segments, (first, max(first, last_seek)), frames, size)


def _segment(
    video: str,
    narration: Captions,
    segments: Segments,
    seeks: tuple[int, int],
    frames: list[bytes],
    size: tuple[int, int],
) -> Iterator[tuple[dict[str, object], float]]:
    weights = clip_weights(narration.start, narration.end, seeks, segments.min_time, segments.clip_seconds)
    owned = np.flatnonzero(weights)
    if not len(owned):
        return
    begin = max(0, int(owned[0]) - segments.max_candidates + 1)
    end = min(len(weights), int(owned[-1]) + segments.max_candidates)
    example = {
        "video_id": video.split(".")[0],
        "start": seeks[0],
        "seek_first": seeks[0],
        "seek_last": seeks[1],
        "height": size[0],
        "width": size[1],
        "frames": list(frames),
        "caption_first": begin,
        "caption_total": len(weights),
        "caption_start": narration.start[begin:end],
        "caption_end": narration.end[begin:end],
        "caption_text": list(narration.text[begin:end]),
    }
    yield example, float(weights.sum())


def _text(cell: str) -> str:
    return "nan" if cell in MISSING else cell


def _seconds(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{place}: expected seconds, found {text!r}") from None
    if not 0 <= value < LONGEST:
        raise DataError(f"{place}: expected seconds, found {text!r}")
    return value


def _video_list(path: Path) -> list[str]:
    return [row["video_path"] for row in read_rows(path, ("video_path",))]


def howto100m(arguments: argparse.Namespace) -> None:
    """Training shards."""
    segments = Segments(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Segments)})
    protocol = {"kind": "milnce_training", **dataclasses.asdict(segments)}
    make = functools.partial(
        training_records, video_root=arguments.videos, caption_root=arguments.captions, segments=segments
    )
    items = _video_list(arguments.list)
    job = shards.Job(arguments.output, "howto100m", "train", TRAINING_FEATURES, protocol, items, make)
    shards.run(job, arguments)


def retrieval(arguments: argparse.Namespace) -> None:
    """A retrieval set, from one of the lists."""
    items = {"youcook2": _youcook2, "msrvtt": _msrvtt, "segments": _segments}[arguments.command](arguments)
    protocol = {name: getattr(arguments, name) for name in ("windows", "num_frames", "fps", "size")}
    make = functools.partial(retrieval_records, video_root=arguments.videos, **protocol)
    split = {"youcook2": "validation"}.get(arguments.command, "test")
    protocol = {"kind": "milnce_retrieval", **protocol}
    job = shards.Job(arguments.output, arguments.command, split, RETRIEVAL_FEATURES, protocol, items, make)
    shards.run(job, arguments)


def _youcook2(arguments: argparse.Namespace) -> list[dict[str, object]]:
    items = []
    for number, row in enumerate(read_rows(arguments.csv, ("end", "start", "task", "text", "video_id")), start=2):
        stem = f"validation/{row['task']}/{row['video_id']}"
        paths = [stem + ending for ending in (".mp4", ".mkv", ".webm")]
        items.append(_item(arguments.csv, number, row, paths, row["video_id"]))
    return items


def _segments(arguments: argparse.Namespace) -> list[dict[str, object]]:
    rows = read_rows(arguments.csv, ("video_path", "start", "end", "text"))
    return [
        _item(arguments.csv, number, row, [row["video_path"]], row["video_path"])
        for number, row in enumerate(rows, start=2)
    ]


def _msrvtt(arguments: argparse.Namespace) -> list[dict[str, object]]:
    return [
        {
            "paths": [f"{row['video_id']}.mp4"],
            "video_id": row["video_id"],
            "text": _text(row["sentence"]),
            "start": 0.0,
            "end": None,
        }
        for row in read_rows(arguments.csv, ("key", "vid_key", "video_id", "sentence"))
    ]


def _item(path: Path, number: int, row: dict[str, str], paths: list[str], video_id: str) -> dict[str, object]:
    times = {key: _seconds(row[key], f"{path}: line {number}, column {key!r}") for key in ("start", "end")}
    return {"paths": paths, "video_id": video_id, "text": _text(row["text"]), **times}


def vocabulary(arguments: argparse.Namespace) -> None:
    """A word list of all captions, most frequent words first."""
    skipped = []

    def sentences() -> Iterator[str]:
        for video in _video_list(arguments.list):
            try:
                yield from read_captions(arguments.captions / f"{video.split('.')[0]}.csv").text
            except DataError as error:
                skipped.append(str(error))

    words = word_list.build(sentences(), arguments.rows - 1)
    if not len(words):
        raise DataError(f"{arguments.captions}: no words in the captions of {arguments.list}")
    padded = np.concatenate([words, [f"<unused {n}>" for n in range(arguments.rows - 1 - len(words))]])
    buffer = io.BytesIO()
    np.save(buffer, padded.astype(np.str_))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, buffer.getvalue())
    print(f"{arguments.output}: {len(words)} words, for config.text.rows = {arguments.rows}")
    if skipped:
        print(f"  {len(skipped)} caption files skipped, such as {skipped[0]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that these words, or else the command line's, name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("howto100m", help="training shards")
    shards.add_arguments(train, num_shards=128)
    train.add_argument("--list", required=True, type=Path, help="csv with the column video_path")
    train.add_argument("--videos", required=True, type=Path, help="folder that video_path is relative to")
    train.add_argument("--captions", required=True, type=Path, help="folder with a csv (start, end, text) per video")
    train.add_argument("--fps", type=int, default=5)
    train.add_argument("--short_side", type=int, default=256, help="of the stored frames")
    train.add_argument("--smallest_side", type=int, default=224, help="videos below this are skipped (or enlarged)")
    train.add_argument("--enlarge", action="store_true", help="enlarge small videos instead")
    train.add_argument(
        "--segment_seconds", dest="seconds", type=int, default=16, help="per record; 0 keeps videos whole"
    )
    train.add_argument("--clip_seconds", type=float, default=3.2, help="length of the training clip")
    train.add_argument("--min_time", type=float, default=5.0, help="shorter captions are widened to this")
    train.add_argument("--max_candidates", type=int, default=8, help="largest K that the records allow")
    train.add_argument("--min_seconds", type=float, default=3.2, help="videos shorter than this are skipped")
    train.add_argument("--quality", type=int, default=90, help="of the JPEG frames")
    train.add_argument("--epoch", choices=("videos", "segments"), default="videos", help="what an epoch visits once")
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
        evaluation.set_defaults(run=retrieval)
    words = commands.add_parser("vocabulary", help="a word list")
    words.add_argument("--list", required=True, type=Path, help="csv with the column video_path")
    words.add_argument("--captions", required=True, type=Path, help="folder with a csv per video")
    words.add_argument("--output", required=True, type=Path, help="file to write, .npy")
    words.add_argument("--rows", type=int, default=66250, help="rows of the word table, padding included")
    words.set_defaults(run=vocabulary)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    shards.main(main)

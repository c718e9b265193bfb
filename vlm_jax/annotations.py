"""Sentences and the moments that they describe, read from the formats of several data sets; plain Python.

    tacos         JSON {video: {timestamps (frames), sentences, fps, num_frames}}, as 2D-TAN distributes it
    tacos_raw     TACoS as published: a folder of VIDEO.aligned.tsv (`START END ...` in frames, sentences from the
                  seventh column on, one per annotator), one such file, or index.tsv (ID, sentence, VIDEO, START, END)
    charades      Charades-STA, lines `VIDEO START END##sentence` (seconds); durations from the csv of Charades
    activitynet   ActivityNet Captions, JSON {video: {duration, timestamps (seconds), sentences}}
    didemo        JSON list of {annotation_id, description, video, times (pairs of 5-second segments), num_segments}
    qvhighlights  one JSON object per line {qid, query, duration, vid, relevant_windows}; also used by lighthouse
    jsonl         one JSON object per line, our own: {qid, video, query, duration, spans, fps, frames}

Every annotation becomes a `Query`. Annotations that cannot be used are left out and listed with the reason.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.errors import UserError

LATE = 1.0
"""Time by which a moment may end after its video, seconds; annotators' players and durations differ by that much."""
SEGMENT = 5.0
"""Length of a segment of DiDeMo, seconds."""
TACOS_FPS = 29.4
"""Frame rate of the videos of TACoS, frames per second."""
ALIGNED = ".aligned.tsv"
"""Ending of the TACoS files that belong to one video."""

Spans = tuple[tuple[float, float], ...]


class AnnotationError(UserError):
    """File of annotations that cannot be used; one line naming it."""


@dataclasses.dataclass(frozen=True)
class Query:
    """Sentence and the moments that it describes.

    Attributes:
      qid: Name of the query, unique within the file.
      video: Name of the video.
      query: Sentence.
      duration: Duration of the video, seconds; 0 if unknown.
      spans: Start and end of each moment, seconds. Several moments are alternatives; none if they are not published.
      fps: Frames per second of `frames`; 0 if there are none.
      frames: Start and end of each moment in frames, for data sets that count in frames.
    """

    qid: str
    video: str
    query: str
    duration: float = 0.0
    spans: Spans = ()
    fps: float = 0.0
    frames: Spans = ()


class Fault(NamedTuple):
    """Query that is left out.

    Attributes:
      item: Name of the query.
      reason: Reason in a few words, the same for all queries with this problem.
      detail: Description of what was found.
    """

    item: str
    reason: str
    detail: str


class Annotations(NamedTuple):
    """Queries of a file in their order, and those that are left out."""

    queries: list[Query]
    faults: list[Fault]


def read(path: str | Path, form: str = "jsonl", durations: str | Path | None = None) -> Annotations:
    """Read a file of annotations.

    Args:
      path: File to read; for `tacos_raw` also the folder of its files.
      form: One of `FORMS`.
      durations: Csv file with the columns `id` and `length` (seconds), for `charades` only.

    Raises:
      AnnotationError: if a file is missing or has another form, or none of its annotations can be used.
    """
    path = Path(path)
    if form not in FORMS:
        raise AnnotationError(f"annotations: form {form!r} is not one of {', '.join(FORMS)}")
    if durations and form != "charades":
        raise AnnotationError(f"{durations}: durations are a file of their own for charades only, not for {form}")
    lengths = _durations(Path(durations)) if durations else {}
    queries, faults, seen = [], [], set()
    files = _aligned_files(path) if form == "tacos_raw" and path.is_dir() else [path]
    for item, make in (item for file in files for item in FORMS[form](file, _read_text(file), lengths)):
        try:
            query = make()
            fault = _fault(query, seen)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            found = f"no key {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            fault = Fault(item, "not an annotation", found)
        if fault:
            faults.append(fault)
        else:
            seen.add(query.qid)
            queries.append(query)
    if not queries and not faults:
        raise AnnotationError(f"{path}: holds no annotations of the form {form}")
    if not queries:
        raise AnnotationError(
            f"{path}: none of {len(faults)} annotations of the form {form} can be used; the first, {faults[0].item}: "
            f"{faults[0].reason} ({faults[0].detail})"
        )
    return Annotations(queries, faults)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not a UTF-8 file ({error})") from None


def _aligned_files(folder: Path) -> list[Path]:
    """Return the TACoS files of a folder, sorted by name."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ALIGNED))
    if not files:
        raise AnnotationError(f"{folder}: no VIDEO{ALIGNED} there")
    return files


def write(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries in our own form, `jsonl`."""
    lines = [json.dumps(dataclasses.asdict(query), ensure_ascii=False) + "\n" for query in queries]
    Path(path).write_text("".join(lines), encoding="utf-8")


def _fault(query: Query, seen: set[str]) -> Fault | None:
    """Return the first fault of a query, None if there is none; `seen` has the names of all queries before it."""

    def fault(reason: str, detail: str) -> Fault:
        return Fault(query.qid, reason, detail)

    if not query.qid or not query.video:
        return fault("no name", f"qid {query.qid!r}, video {query.video!r}")
    if query.qid in seen:
        return fault("duplicate id", f"{query.query!r}")
    if not query.query.strip():
        return fault("empty query", f"{query.query!r}")
    if not math.isfinite(query.duration) or query.duration < 0:
        return fault("bad duration", f"{query.duration}")
    for start, end in query.spans:
        found = f"{start:g} to {end:g} s of {query.video}"
        if not math.isfinite(start) or not math.isfinite(end):
            return fault("not a time", found)
        if end < start:
            return fault("end before start", found)
        if end == start:
            return fault("zero length", found)
        beyond = query.duration and (start >= query.duration or end > query.duration + LATE)
        if start < 0 or beyond:
            lasts = f", which lasts {query.duration:g} s" if query.duration else ""
            return fault("beyond the video", found + lasts)
    return None


Items = Iterator[tuple[str, Callable[[], Query]]]
"""Names for messages, each with a function that makes the query or raises."""


def _by_video(path: Path, text: str, make: Callable[[str, Mapping, int], Query]) -> Items:
    """Yield the queries of `{video: {timestamps, sentences, ...}}`, with names VIDEO#NUMBER."""
    content = _json(path, text)
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected a JSON object by video, found a {type(content).__name__}")
    for video, entry in content.items():
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        if not isinstance(sentences, list) or not isinstance(entry.get("timestamps"), list):
            raise AnnotationError(f"{path}: {video}: expected lists of timestamps and sentences")
        if len(sentences) != len(entry["timestamps"]):
            raise AnnotationError(
                f"{path}: {video}: {len(sentences)} sentences, but {len(entry['timestamps'])} timestamps"
            )
        for number in range(len(sentences)):
            yield f"{video}#{number}", lambda video=video, entry=entry, number=number: make(video, entry, number)


def _tacos(path: Path, text: str, lengths: Mapping[str, float]) -> Items:
    def make(video: str, entry: Mapping, number: int) -> Query:
        fps, frames = float(entry["fps"]), _spans([entry["timestamps"][number]])
        if not fps > 0:
            raise ValueError(f"expected frames per second, found {fps}")
        spans = tuple((start / fps, end / fps) for start, end in frames)
        duration = entry["num_frames"] / fps
        return Query(f"{video}#{number}", video, _text(entry["sentences"][number]), duration, spans, fps, frames)

    return _by_video(path, text, make)


def _tacos_raw(path: Path, text: str, lengths: Mapping[str, float]) -> Items:
    aligned = path.name.endswith(ALIGNED)
    numbers: dict[str, int] = {}
    for line, row in enumerate(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
        if not row:
            continue
        # The columns between the frames and the sentences have the activity; some annotators wrote no sentence.
        sentences = [sentence for sentence in row[6:] if sentence.strip()] if aligned else row[1:2]
        for sentence in sentences or [""]:

            def make(row: list[str] = row, sentence: str = sentence) -> Query:
                start, end, video = (
                    (row[0], row[1], path.name.removesuffix(ALIGNED)) if aligned else (*row[3:5], row[2])
                )
                frames = ((float(start), float(end)),)
                if not sentence:
                    raise ValueError("no annotator wrote a sentence")
                video = f"{video.removesuffix('.avi')}.avi"
                numbers[video] = numbers.get(video, -1) + 1
                spans = tuple((first / TACOS_FPS, last / TACOS_FPS) for first, last in frames)
                return Query(f"{video}#{numbers[video]}", video, sentence.strip(), 0.0, spans, TACOS_FPS, frames)

            yield f"{path.name}, line {line}", make


def _activitynet(path: Path, text: str, lengths: Mapping[str, float]) -> Items:
    def make(video: str, entry: Mapping, number: int) -> Query:
        spans = _spans([entry["timestamps"][number]])
        return Query(f"{video}#{number}", video, _text(entry["sentences"][number]), float(entry["duration"]), spans)

    return _by_video(path, text, make)


def _charades(path: Path, text: str, lengths: Mapping[str, float]) -> Items:
    for number, line in enumerate(text.splitlines(), start=1):

        def make(line: str = line, number: int = number) -> Query:
            place, mark, sentence = line.partition("##")
            words = place.split()
            if not mark or len(words) != 3:
                raise ValueError(f"expected 'VIDEO START END##sentence', found {line[:60]!r}")
            video, start, end = words
            return Query(str(number), video, sentence.strip(), lengths.get(video, 0.0), _spans([[start, end]]))

        if line.strip():
            yield f"line {number}", make


def _didemo(path: Path, text: str, lengths: Mapping[str, float]) -> Items:
    content = _json(path, text)
    if not isinstance(content, list):
        raise AnnotationError(f"{path}: expected a JSON list, found a {type(content).__name__}")
    for number, entry in enumerate(content):

        def make(entry: Any = entry) -> Query:
            # `times` has the numbers of the first and the last segment, both inclusive.
            spans = tuple((first * SEGMENT, (last + 1) * SEGMENT) for first, last in _spans(entry.get("times", [])))
            duration = SEGMENT * entry.get("num_segments", 6)
            name = str(entry["annotation_id"])
            return Query(name, _text(entry["video"]), _text(entry["description"]), duration, spans)

        yield f"entry {number}", make


def _qvhighlights(path: Path, text: str, lengths: Mapping[str, float]) -> Items:
    def make(entry: Mapping) -> Query:
        spans = _spans(entry.get("relevant_windows", []))
        return Query(str(entry["qid"]), _text(entry["vid"]), _text(entry["query"]), float(entry["duration"]), spans)

    return _lines(path, text, make)


def _jsonl(path: Path, text: str, lengths: Mapping[str, float]) -> Items:
    def make(entry: Mapping) -> Query:
        numbers = {name: float(entry.get(name) or 0) for name in ("duration", "fps")}
        spans = {name: _spans(entry.get(name) or []) for name in ("spans", "frames")}
        return Query(str(entry["qid"]), _text(entry["video"]), _text(entry["query"]), **numbers, **spans)

    return _lines(path, text, make)


FORMS: dict[str, Callable[[Path, str, Mapping[str, float]], Items]] = {
    "tacos": _tacos,
    "charades": _charades,
    "activitynet": _activitynet,
    "didemo": _didemo,
    "qvhighlights": _qvhighlights,
    "tacos_raw": _tacos_raw,
    "jsonl": _jsonl,
}


def _lines(path: Path, text: str, make: Callable[[Mapping], Query]) -> Items:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", lambda line=line: make(json.loads(line))


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AnnotationError(f"{path}: not JSON ({error})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r}")
    return value


def _spans(pairs: Any) -> Spans:
    """Convert pairs of numbers to spans.

    Raises:
      ValueError: if a pair does not have two numbers.
    """
    found = tuple(tuple(float(edge) for edge in pair) for pair in pairs)
    wrong = next((pair for pair in found if len(pair) != 2), None)
    if wrong is not None:
        raise ValueError(f"expected a start and an end, found {list(wrong)}")
    return found


def _durations(path: Path) -> dict[str, float]:
    """Read the durations of videos, in seconds, by name.

    Raises:
      AnnotationError: if the file cannot be read, lacks a column, or has a length that is not a number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [name for name in ("id", "length") if name not in (reader.fieldnames or ())]
            if absent:
                raise AnnotationError(
                    f"{path}: no column {absent[0]!r}; it has {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            rows = [(row["id"], row["length"]) for row in reader]
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(f"{path}: not a UTF-8 csv file ({error})") from None
    try:
        return {name: float(length) for name, length in rows}
    except (TypeError, ValueError):
        raise AnnotationError(f"{path}: a length is no number of seconds") from None

"""Annotations of SNP-S3: JSON lines of captions, questions and choices, and their grouping into items.

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp/roi_univl/univl/pretrain_video_text/dataset.py and
video_text/{ret,mc_qa}_dataset.py. docs/snps3.md lists the keys.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from vlm_jax.errors import DataError

USES = ("captions", "questions", "choices")
"""Uses of a file: captions for pre-training and retrieval, open-ended questions, and questions with choices."""
MEDIA = ("video", "image")
LONGEST = 1e8
"""Upper limit of times, seconds."""
_LONGEST_NAME, _NO_NAME = 1000, re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Part: TypeAlias = tuple[str, float | None, float | None]
"""Name of a video or image, and start and end of the part of it, seconds; None for the whole."""


class Line(NamedTuple):
    """Line of a file of annotations.

    Attributes:
      number: Number of the line in the file, from 1.
      clip_name: File name of the video or image.
      media: 'video' or 'image'.
      start: Start of the part of the video, seconds; None for the whole.
      end: Its end.
      text: Caption, question or title.
      order: Position among the lines of a video, `sen_id`.
      key: Name of the line, `retrieval_key` or `sen_id`; for questions `qid`, by default the line's number.
      answers: Answers of a question, labels or texts; the number of the right option for choices, if it is known.
      options: Options of a question with several choices.
    """

    number: int
    clip_name: str
    media: str
    start: float | None
    end: float | None
    text: str
    order: float
    key: int | str
    answers: tuple[int | str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def part(self) -> Part:
        """Return the part of a video that the line describes."""
        return self.clip_name, self.start, self.end


class Fault(NamedTuple):
    """Line that cannot be used.

    Attributes:
      item: Number of the line.
      reason: Reason in a few words, the same for all lines with this fault.
      detail: Description of what was found.
    """

    item: str
    reason: str
    detail: str


class Item(NamedTuple):
    """Item of a data set: what one visit shows.

    Attributes:
      part: Part of a video, or an image.
      media: 'video' or 'image'.
      video: Number of its video; parts of one video share it.
      lines: Lines of which one is drawn per visit, by `order`.
    """

    part: Part
    media: str
    video: int
    lines: Sequence[Line]


def read_lines(path: Path, use: str) -> tuple[list[Line], list[Fault]]:
    """Return the lines of a file that can be used, and the others with a reason.

    Args:
      path: File with one JSON object per line.
      use: One of `USES`.

    Raises:
      DataError: For a file that cannot be read, or has no line that can be used.
    """
    lines, faults = [], []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    lines.append(_line(number, text, use))
                except _LineError as error:
                    faults.append(Fault(f"line {number}", *error.args))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected one JSON object per line ({error})") from None
    if not lines:
        why = f"; {faults[0].item}: {faults[0].reason} ({faults[0].detail})" if faults else ", the file is empty"
        raise DataError(f"{path}: no line that can be used for {use}{why}")
    return lines, faults


class _LineError(Exception):
    """Fault of a line: reason and detail."""


def _line(number: int, text: str, use: str) -> Line:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise _LineError("no JSON", text.strip()[:80]) from None
    if not isinstance(row, dict):
        raise _LineError("no JSON object", text.strip()[:80])
    name = row.get("clip_name")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or _NO_NAME.search(name):
        raise _LineError("no clip_name", ascii(name)[:80])
    media = row.get("type") or "video"
    if media not in MEDIA:
        raise _LineError("type is neither image nor video", repr(media)[:80])
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if (start is None) != (end is None) or (start is not None and end is not None and end <= start):
        raise _LineError("start is not before end", f"{start} and {end}")
    order = _order(row.get("sen_id", 0))
    text = row.get("title" if use == "choices" and "title" in row else "caption", None if use == "questions" else "")
    if text is None and use == "captions":  # the words of a transcript may stand in for it
        text = ""
    if not isinstance(text, str):
        raise _LineError("no caption", repr(text)[:80])
    common = (number, name, media, start, end, text, order)
    if use == "captions":
        return Line(*common, _key(row.get("retrieval_key") or row.get("sen_id", 0)))
    qid = _key(row.get("qid", number - 1))
    if use == "questions":
        return Line(*common, qid, _labels(row.get("label")))
    options = row.get("options")
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise _LineError("options are no list of texts", repr(options)[:80])
    answer = row.get("answer")
    if answer is None:
        return Line(*common, qid, (), tuple(options))
    if str(answer) not in map(str, range(len(options))):
        raise _LineError("answer is none of the options", f"{answer!r} of {len(options)} options"[:80])
    return Line(*common, qid, (int(answer),), tuple(options))


def _key(value: Any) -> int | str:
    return value if isinstance(value, int | str) else str(value)


def _seconds(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST:
        raise _LineError(f"{key} is no time in seconds", repr(value)[:80])
    return float(value)


def _order(value: Any) -> float:
    """Return a line's position; texts that are no numbers count as 0, so that these lines keep their order."""
    try:
        order = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return order if math.isfinite(order) else 0.0


def _labels(value: Any) -> tuple[int | str, ...]:
    """Return the labels of a question.

    A list whose numbers are all 0 or 1 with more than one entry is a multi-hot vector, as in the reference.
    """
    if (
        isinstance(value, list)
        and len(value) > 1
        and all(type(each) in (int, float) and each in (0, 1) for each in value)
    ):
        return tuple(index for index, each in enumerate(value) if each)
    found = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str) and each.strip():
            found.append(each.strip())
        elif type(each) is int and 0 <= each < 1 << 31:
            found.append(each)
        else:
            raise _LineError("label is neither a number nor a text", repr(value)[:80])
    if not found:
        raise _LineError("label is neither a number nor a text", repr(value)[:80])
    return tuple(found)


def group_parts(lines: Iterable[Line]) -> list[Item]:
    """Return one item per part of a video, whose lines are alternatives: pre-training and retrieval.

    Videos are numbered by first appearance, and the parts of a video follow one another.
    """
    items = []
    for number, own in enumerate(_by_video(lines).values()):
        parts: dict[Part, list[Line]] = {}
        for line in own:
            parts.setdefault(line.part, []).append(line)
        items += [Item(part, alternatives[0].media, number, alternatives) for part, alternatives in parts.items()]
    return items


def single_lines(lines: Iterable[Line]) -> list[Item]:
    """Return one item per line, those of a part of a video together: questions, and pairs of a retrieval test."""
    return [item._replace(lines=[line]) for item in group_parts(lines) for line in item.lines]


def number_texts(lines: Iterable[Line]) -> dict[str, int]:
    """Return the number of every distinct text, by first appearance in the file."""
    numbers: dict[str, int] = {}
    for line in sorted(lines, key=lambda line: line.number):
        numbers.setdefault(line.text, len(numbers))
    return numbers


def _by_video(lines: Iterable[Line]) -> dict[str, list[Line]]:
    videos: dict[str, list[Line]] = {}
    for line in lines:
        videos.setdefault(line.clip_name, []).append(line)
    return {name: sorted(own, key=lambda line: line.order) for name, own in videos.items()}


def read_transcript(path: Path) -> list[tuple[str, float, float]]:
    """Return text, start and end (seconds) of the lines of a transcript, a JSON object of three parallel lists.

    Raises:
      DataError: If the file is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        columns = [found["text"], found["start"], found["end"]]
        rows = [(str(text), float(start), float(end)) for text, start, end in zip(*columns, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON with the lists text, start and end ({error})") from None
    return [row for row in rows if 0 <= row[1] < row[2] < LONGEST]


def spoken_parts(line: Line, transcript: Sequence[tuple[str, float, float]], min_seconds: float = 10.0) -> list[Line]:
    """Return a line for every part of a video with speech; consecutive lines are joined to at least `min_seconds`.

    The reference draws such a part anew at every visit; here all of them are items.
    """
    parts, words, begin = [], [], 0.0
    for number, (text, start, end) in enumerate(transcript):
        begin = begin if words else start
        words.append(text)
        if end - begin >= min_seconds or number == len(transcript) - 1:
            parts.append(line._replace(text=" ".join(words), start=begin, end=end))
            words = []
    return [part for part in parts if part.end > part.start]

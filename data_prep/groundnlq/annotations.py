"""Ego4D's questions, and narrations used as questions, in the form of houzhijian/GroundNLQ: one dict per question.

    {"query": text, "query_id": ..., "duration": seconds, "video_id": clip, "query_type": ..., "timestamps": [[0.5, 2]]}

The rules are those of its `reformat_data.py` and of its scripts for narrations.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax import annotations as forms
from vlm_jax.annotations import AnnotationError
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq.data import QUERY_KINDS

EGO4D = "ego4d"
NARRATORS = {"narration_pass_1": "narrator-1", "narration_pass_2": "narrator-2"}
EGOCLIP_COLUMNS = ("video_uid", "narration_source", "narration_ind", "clip_start", "clip_end", "clip_text")
WITHOUT_FEATURES = (
    "1f980b47-4fe6-418f-be03-a0c23768cd74",
    "26e62afd-05ec-450a-9291-8936f8e52571",
    "0fa5b9ca-6ff0-4dea-8093-054dbe214f02",
)
"""Clips without released features."""


class Narration(NamedTuple):
    """A row of EgoClip.

    Attributes:
      narrator: Name of the narrator, a value of `NARRATORS`.
      number: Number of the narration.
      start: Start, seconds of the whole video.
      end: End, seconds of the whole video.
      text: Text of the narration.
    """

    narrator: str
    number: str
    start: float
    end: float
    text: str


def questions(annotations: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions of an official file.

    Questions without text are left out, but the index in `query_id` counts them.
    """
    for video in annotations["videos"]:
        for clip in video["clips"]:
            duration = clip["video_end_sec"] - clip["video_start_sec"]
            for annotation in clip["annotations"]:
                for index, query in enumerate(annotation["language_queries"]):
                    if not query.get("query"):
                        continue
                    name = f"{annotation['annotation_uid']}_{index}"
                    record = {"query": query["query"], "query_id": name, "duration": duration}
                    record |= {"video_id": clip["clip_uid"], "query_type": "nlq"}
                    if "clip_start_sec" in query:
                        record["timestamps"] = [[query["clip_start_sec"], query["clip_end_sec"]]]
                    yield record


def narrations(
    by_video: Mapping[str, Sequence[Narration]],
    annotations: Iterable[Mapping[str, Any]],
    dropped: Sequence[str] = WITHOUT_FEATURES,
) -> Iterator[dict[str, Any]]:
    """Yield the narrations that lie within the clips of annotation files, each clip once.

    Args:
      by_video: Narrations of each video, from `read_egoclip`.
      annotations: Training files of questions, moments and visual queries, in this order.
      dropped: Names of clips that are left out.
    """
    seen = set(dropped)
    for content in annotations:
        for video in content["videos"]:
            for clip in video["clips"]:
                name = clip["clip_uid"]
                if name in seen or video["video_uid"] not in by_video:
                    continue
                seen.add(name)
                begin, end = clip["video_start_sec"], clip["video_end_sec"]
                for said in by_video[video["video_uid"]]:
                    if said.start > begin and said.end < end:
                        yield {
                            "narration_query": said.text,
                            "query_id": f"{name}_{said.narrator}_{said.number}",
                            "duration": end - begin,
                            "video_id": name,
                            "query_type": "nlq_narration",
                            "timestamps": [[said.start - begin, said.end - begin]],
                        }


def to_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return JSON lines, one object per line, without a line break at the end."""
    return "\n".join(json.dumps(record) for record in records)


def read_egoclip(path: Path) -> dict[str, list[Narration]]:
    """Read the narrations of every video from `egoclip.csv`, a tab-separated table. Malformed rows are skipped.

    Raises:
      DataError: for a file that cannot be read, lacks a column, or names an unknown narrator.
    """
    found: dict[str, list[Narration]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t")
            absent = [name for name in EGOCLIP_COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise DataError(f"{path}: no column {absent[0]!r}, parted by tabs")
            for number, row in enumerate(reader, start=2):
                try:
                    start, end = float(row["clip_start"]), float(row["clip_end"])
                except (TypeError, ValueError):
                    continue
                if None in row or not row["clip_text"] or not math.isfinite(start + end):
                    continue
                if row["narration_source"] not in NARRATORS:
                    raise DataError(
                        f"{path}: line {number}: narration_source is {row['narration_source']!r}, expected "
                        + " or ".join(NARRATORS)
                    )
                said = Narration(NARRATORS[row["narration_source"]], row["narration_ind"], start, end, row["clip_text"])
                found.setdefault(row["video_uid"], []).append(said)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 table ({error})") from None
    return found


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      DataError: for a file that cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None


def read_questions(path: Path, form: str = EGO4D) -> list[dict[str, Any]]:
    """Read the questions of a file.

    Args:
      path: Path of the file.
      form: `ego4d` for an official file (`.json`) or one that the reference's scripts wrote (`.jsonl`), or one of
        `vlm_jax.annotations.FORMS`.

    Raises:
      DataError: for a file that cannot be read or holds something else.
    """
    if form != EGO4D:
        try:
            found = forms.read(path, form)
        except AnnotationError as error:
            raise DataError(str(error)) from None
        faults = [{"query_id": fault.item, "fault": [fault.reason, fault.detail]} for fault in found.faults]
        return [_record(query) for query in found.queries] + faults
    if path.suffix != ".jsonl":
        try:
            return list(questions(read_json(path)))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not an annotation file of Ego4D ({type(error).__name__}: {error})") from None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                records.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise DataError(f"{path}: line {number}: not a JSON object") from None
    return records


def _record(query: forms.Query) -> dict[str, Any]:
    names = {"query": query.query, "query_id": query.qid, "duration": query.duration, "video_id": query.video}
    return names | {"query_type": "nlq", "timestamps": [list(span) for span in query.spans]}


def items(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return questions as items of a preparation.

    An item that cannot be used has only `qid` and `fault`: the reason, and what was found.
    """
    found, seen = [], set()
    for number, record in enumerate(records, start=1):
        name = str(record.get("query_id", f"question {number}"))
        fault = _fault(record, seen)
        if fault:
            found.append({"qid": name, "fault": fault})
            continue
        seen.add(name)
        times = record.get("timestamps") or []
        # A single pair may stand without a list around it.
        spans = [times] if times and not isinstance(times[0], list | tuple) else times
        found.append(
            {
                "qid": name,
                "clip": record["video_id"],
                "kind": record["query_type"],
                "text": record.get("query") or record.get("narration_query") or "",
                "duration": float(record["duration"]),
                "spans": [[float(edge) for edge in span] for span in spans],
            }
        )
    return found


def _fault(record: Mapping[str, Any], seen: set[str]) -> list[str] | None:
    if "fault" in record:
        return record["fault"]
    absent = [key for key in ("query_id", "video_id", "duration") if record.get(key) is None]
    if absent:
        return ["not an annotation", f"no {absent[0]}"]
    kind = record.get("query_type")
    if kind not in QUERY_KINDS:
        return ["unknown kind", f"query_type is {kind!r}, expected one of {', '.join(QUERY_KINDS)}"]
    if record["query_id"] in seen:
        return ["duplicate name", ""]
    times = record.get("timestamps") or []
    spans = [times] if times and not isinstance(times[0], list | tuple) else times
    for span in spans:
        try:
            start, end = (float(edge) for edge in span)
        except (TypeError, ValueError):
            return ["not a moment", f"{span!r}"]
        if not math.isfinite(start + end) or end < start:
            return ["not a moment", f"{start} to {end} s"]
    try:
        duration = float(record["duration"])
    except (TypeError, ValueError):
        duration = math.nan
    return None if duration > 0 else ["not an annotation", f"duration is {record['duration']!r}"]

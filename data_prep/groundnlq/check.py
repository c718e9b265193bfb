"""Check GroundNLQ's data, raw or prepared: python -m data_prep.groundnlq --check DIR [options]

Prepared data (DIR holds protocol.json), clips or questions: every record is read. With --features, a folder of prepared
clips, questions are compared with their clips. Raw data (DIR is an LMDB, or a folder of .pt, .npy or .npz files): the
features of every clip are read. With --annotations, every question's clip must be in DIR. With --text, every question
must have features of its words.
"""

import argparse
import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.check import PREPARED, Found, Problem, Reason, check_each, check_parser, check_prepared, run_check
from data_prep.groundnlq import annotations
from data_prep.groundnlq.stores import TEXT_KEYS, VIDEO_KEYS, open_store, read_rows, words
from vlm_jax.annotations import FORMS
from vlm_jax.data import feature_store as clips
from vlm_jax.data.protocol import PROTOCOL, read_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.data.records import Skip
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq import data

MAX_LENGTH = 2560
"""Largest number of positions that the published models take."""
LATE = 1.0
"""Seconds by which a moment may outlast its clip; 249 of Ego4D's training moments do, by little."""

_LEFT_OUT = "the preparation leaves such items out; "
REASONS: dict[str, Reason] = PREPARED | {
    "unreadable": Reason(
        "item has features that cannot be read",
        "items have features that cannot be read",
        _LEFT_OUT + "extract or fetch them again",
    ),
    "wrong shape": Reason(
        "item has features of another width",
        "items have features of another width",
        _LEFT_OUT + "are --dim and --text_dim what they were made with?",
    ),
    "no features": Reason(
        "clip has an empty array", "clips have empty arrays", _LEFT_OUT + "extract these features again"
    ),
    "left out": Reason(
        "question cannot be used", "questions cannot be used", _LEFT_OUT + "repair them; is --format right?"
    ),
    "width": Reason(
        "record has features of another width",
        "records have features of another width",
        "the folder was not made by one preparation; make it again",
    ),
    "not finite": Reason(
        "record has features that are no finite numbers",
        "records have features that are no finite numbers",
        "extract these features again and delete the shard (.tfrecord- and .index-)",
    ),
    "too long": Reason(
        "clip is longer than the published models take",
        "clips are longer than the published models take",
        "training refuses them: cut them; evaluation shows them in overlapping windows",
    ),
    "twice": Reason(
        "name is there twice", "names are there twice", "drop one of the two from what the data were made of"
    ),
    "no tokens": Reason(
        "question has no features of words", "questions have no features of words", "extract them and prepare again"
    ),
    "no length": Reason(
        "question is answered by a moment of no length",
        "questions are answered by moments of no length",
        "training sees them as questions without an answer, and no prediction is ever right; drop or repair them",
    ),
    "beyond the end": Reason(
        "question is answered beyond its clip's end",
        "questions are answered beyond their clips' ends",
        "no position can learn it; are times seconds of the clip, not of the video?",
    ),
    "late": Reason(
        "moment outlasts its clip",
        "moments outlast their clips",
        "used unchanged, as the reference does; are these clips cut off?",
    ),
    "no clip": Reason(
        "question is about a clip without features",
        "questions are about clips without features",
        "training and evaluation refuse the data: extract the clips, or leave these questions out",
    ),
    "shorter features": Reason(
        "clip has features of a much shorter video than its questions state",
        "clips have features of much shorter videos than their questions state",
        "are --feature_stride and --fps those that the features were made with?",
    ),
}


def check(arguments: Sequence[str]) -> None:
    """Run `--check DIR` with its options. Exit with status 1 if there are problems."""
    parser = check_parser(__doc__)
    parser.add_argument("--features", type=Path, help="the prepared clips that prepared questions are about")
    raw = parser.add_argument_group("raw data")
    raw.add_argument("--annotations", type=Path, help="file of questions about the clips")
    raw.add_argument(
        "--format", choices=(annotations.EGO4D, *FORMS), default=annotations.EGO4D, help="form of that file"
    )
    raw.add_argument("--text", type=Path, help="features of the questions' words: LMDB, folder or .npz file")
    raw.add_argument("--dim", type=int, help="width of a clip's features (default: 2304, or as stated)")
    raw.add_argument("--text_dim", type=int, help="width of a word's features (default: 512, or as stated)")
    raw.add_argument("--feature_stride", type=float, help="frames per position (default: 16.043, or as stated)")
    raw.add_argument("--fps", type=float, help="frames per second (default: 30, or as stated)")
    run_check(parser.parse_args(arguments), _all, REASONS, may_be_file=True)


def _all(arguments: argparse.Namespace) -> Iterator[Found]:
    return _prepared(arguments) if (arguments.check / PROTOCOL).is_file() else _raw(arguments)


@dataclasses.dataclass(frozen=True)
class _Clip(Found):
    """Result of checking a raw clip.

    Attributes:
      name: Name of the clip.
      length: Number of its positions, 0 where it cannot be read.
    """

    name: str = ""
    length: int = 0


def _raw(arguments: argparse.Namespace) -> Iterator[Found]:
    store = open_store(arguments.check, VIDEO_KEYS)
    names = list(store.names())
    if not names:
        raise DataError(
            f"{arguments.check}: no {PROTOCOL} and no features; expected an LMDB, or .pt, .npy or .npz files"
        )
    made = store.settings
    dim = arguments.dim or (made.dim if made else 2304)
    stride, fps = (made.stride, made.fps) if made else (16.043, 30.0)
    seconds = (arguments.feature_stride or stride) / (arguments.fps or fps)
    lengths = {}
    function = functools.partial(_check_raw_clip, path=arguments.check, dim=dim)
    for found in check_each(function, names, arguments.workers, "checking features, clips"):
        lengths[found.name] = found.length * seconds
        yield found
    if arguments.annotations:
        yield _check_questions(arguments, lengths)


def _check_raw_clip(name: str, *, path: Path, dim: int) -> _Clip:
    array = read_rows(open_store(path, VIDEO_KEYS), name, dim, "float32")
    if isinstance(array, Skip):
        return _Clip({"clips": 1}, [Problem(array.reason, f"clip {name}: {array.detail}")], name)
    return _Clip({"clips": 1}, list(_check_length(name, len(array))), name, len(array))


def _check_questions(arguments: argparse.Namespace, lengths: Mapping[str, float]) -> Found:
    """Check a file's questions by themselves, against their clips, and against the features of their words.

    Args:
      arguments: Parsed options.
      lengths: Duration of each clip's features, seconds, by name; 0 where they cannot be read.
    """
    items = annotations.items(annotations.read_questions(arguments.annotations, arguments.format))
    faulty = [item for item in items if "fault" in item]
    problems = [Problem("left out", f"{item['qid']}: {' '.join(filter(None, item['fault']))}") for item in faulty]
    usable = [item for item in items if "fault" not in item]
    for item in usable:
        problems += _check_spans(f"question {item['qid']}", item["duration"], item["spans"])
    if arguments.text:
        store = open_store(arguments.text, TEXT_KEYS)
        dim = arguments.text_dim or (store.settings.dim if store.settings else 512)
        for item in usable:
            tokens = read_rows(store, item["qid"], dim, "float32", words)
            if isinstance(tokens, Skip):
                reason = "no tokens" if tokens.reason == "no features" else tokens.reason
                problems.append(Problem(reason, f"question {item['qid']}: {tokens.detail}"))
    told = [item | {name: item[name].encode() for name in ("qid", "clip")} for item in usable]
    problems += _against_clips(told, {name: length for name, length in lengths.items() if length})
    return Found({"questions": len(items)}, problems)


def _prepared(arguments: argparse.Namespace) -> Iterator[Found]:
    content = read_protocol(arguments.check)
    kinds = {clips.KIND: check_clip, data.KIND: check_query}
    kind = content["protocol"].get("kind")
    if kind not in kinds:
        raise DataError(f"{arguments.check}: holds {kind}, expected {' or '.join(kinds)}")
    yield from check_prepared(arguments.check, kinds[kind], arguments.workers)
    if kind == clips.KIND:
        names = [record["clip"].decode() for record in _records(arguments.check, clips.CLIPS)]
        yield Found({}, _twice(names))
        return
    lengths = clip_lengths(arguments.features) if arguments.features else None
    for split in content["splits"]:
        records = list(_records(arguments.check, split))
        yield Found({}, _twice([record["qid"].decode() for record in records]))
        if lengths is not None:
            yield Found({}, list(_against_clips(records, lengths)))


def check_clip(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    """Yield the problems of a prepared clip."""
    name, features = record["clip"].decode(), record["features"]
    yield from _check_features(f"clip {name}", features, protocol["feature_dim"])
    yield from _check_length(name, len(features))


def _check_length(name: str, length: int) -> Iterator[Problem]:
    if length > MAX_LENGTH:
        yield Problem("too long", f"clip {name}: {length} positions, the published models take {MAX_LENGTH}")


def check_query(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    """Yield the problems of a prepared question."""
    name, duration = f"question {record['qid'].decode()}", float(record["duration"])
    if not len(record["tokens"]):
        yield Problem("no tokens", name)
    else:
        yield from _check_features(name, record["tokens"], protocol["text_dim"])
    yield from _check_spans(name, duration, record["spans"].tolist())


def _check_spans(name: str, duration: float, spans: Sequence[Sequence[float]]) -> Iterator[Problem]:
    for start, end in spans:
        place = f"{name}: {start:.2f} to {end:.2f} s of {duration:.2f} s"
        if end <= start:
            yield Problem("no length", place)
        elif start >= duration or end <= 0:
            yield Problem("beyond the end", place)
        elif end > duration + LATE:
            yield Problem("late", place)


def clip_lengths(directory: Path) -> dict[str, float]:
    """Return the duration that each prepared clip's features cover, seconds, by name.

    Raises:
      DataError: for a folder that holds no clips.
    """
    protocol = Split(directory, clips.CLIPS).protocol
    seconds = protocol["feature_stride"] / protocol["fps"]
    return {record["clip"].decode(): len(record["features"]) * seconds for record in _records(directory, clips.CLIPS)}


def _records(directory: Path, name: str) -> Iterator[dict[str, np.ndarray]]:
    split = Split(directory, name)
    form = clips.clip_features if split.protocol["kind"] == clips.KIND else data.query_features
    return clips.read_records(split, form(split.protocol["dtype"]))


def _check_features(place: str, features: np.ndarray, dim: int) -> Iterator[Problem]:
    if features.ndim != 2 or features.shape[1] != dim:
        yield Problem("width", f"{place}: {list(features.shape)}, expected [N, {dim}]")
    elif not np.isfinite(features.astype(np.float32)).all():
        yield Problem("not finite", place)


def _twice(names: Sequence[str]) -> list[Problem]:
    return [Problem("twice", name) for name, count in collections.Counter(names).items() if count > 1]


def _against_clips(records: Sequence[Mapping[str, Any]], lengths: Mapping[str, float]) -> Iterator[Problem]:
    told = set()
    for record in records:
        clip, duration = record["clip"].decode(), float(record["duration"])
        if clip not in lengths:
            yield Problem("no clip", f"question {record['qid'].decode()}: clip {clip}")
        elif lengths[clip] < 0.9 * duration and clip not in told:
            told.add(clip)
            yield Problem("shorter features", f"clip {clip}: {lengths[clip]:.1f} s of {duration:.1f} s")

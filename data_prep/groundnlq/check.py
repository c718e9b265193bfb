"""Checking what GroundNLQ's preparation made: python -m data_prep.groundnlq --check DIR [--features DIR]

DIR holds clips or questions. Every record is read; with the clips at hand, questions are compared with them.
"""

import argparse
import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.check import PREPARED, Found, Problem, Reason, check_parser, check_prepared, run_check
from vlm_jax.data import feature_store as clips
from vlm_jax.data.protocol import read_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq import data

MAX_LENGTH = 2560
"""Positions that the published models take."""
LATE = 1.0
"""Seconds by which a moment may outlast its clip: 249 of Ego4D's training moments do, by little."""

REASONS: dict[str, Reason] = PREPARED | {
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


def check(words: Sequence[str]) -> None:
    """Runs `--check DIR` with its options; exit status 1 if anything is wrong."""
    parser = check_parser(__doc__)
    parser.add_argument("--features", type=Path, help="the prepared clips that questions are about")
    run_check(parser.parse_args(words), _all, REASONS)


def _all(arguments: argparse.Namespace) -> Iterator[Found]:
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
    """What is wrong with a clip by itself."""
    name, features = record["clip"].decode(), record["features"]
    yield from _check_features(f"clip {name}", features, protocol["feature_dim"])
    if len(features) > MAX_LENGTH:
        yield Problem("too long", f"clip {name}: {len(features)} positions, the published models take {MAX_LENGTH}")


def check_query(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    """What is wrong with a question by itself."""
    name, duration = f"question {record['qid'].decode()}", float(record["duration"])
    if not len(record["tokens"]):
        yield Problem("no tokens", name)
    else:
        yield from _check_features(name, record["tokens"], protocol["text_dim"])
    for start, end in record["spans"].tolist():
        place = f"{name}: {start:.2f} to {end:.2f} s of {duration:.2f} s"
        if end <= start:
            yield Problem("no length", place)
        elif start >= duration or end <= 0:
            yield Problem("beyond the end", place)
        elif end > duration + LATE:
            yield Problem("late", place)


def clip_lengths(directory: Path) -> dict[str, float]:
    """Seconds that the features of every clip last.

    Raises:
      DataError: where the folder holds no clips.
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

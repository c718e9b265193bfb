"""Check CTRL's data, raw or prepared: python -m data_prep.ctrl --check DIR [options]

Prepared data (DIR holds protocol.json): every record is read. Raw data (DIR holds VIDEO_START_END.npy files, or the
features of launch/extract_features.py): every file is read. With --sentences, every sentence of that file is checked,
and its video must be in DIR. With --vectors, every sentence must have a vector.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.check import PREPARED, Found, Problem, Reason, check_each, check_parser, check_prepared, run_check
from data_prep.ctrl import sentences as ctrl_sentences
from data_prep.ctrl import windows as ctrl_windows
from data_prep.ctrl.sentences import FORMS, PICKLE
from vlm_jax import features as feature_files
from vlm_jax.data.feature_store import read_records
from vlm_jax.data.protocol import PROTOCOL
from vlm_jax.data.record_examples import Split
from vlm_jax.data.records import Skip
from vlm_jax.features import FeatureError
from vlm_jax.systems.ctrl.data import WINDOW_FEATURES, WINDOWS
from vlm_jax.systems.ctrl.windows import parse

_SKIPPED = "the preparation leaves such files out; "
_LEFT_OUT = "the preparation leaves such sentences out; "
_AGAIN = "prepare the data again"
REASONS: dict[str, Reason] = PREPARED | {
    "name": Reason(
        "file is not named VIDEO_START_END.npy", "files are not named VIDEO_START_END.npy", _SKIPPED + "rename them"
    ),
    "unreadable": Reason("file cannot be used", "files cannot be used", _SKIPPED + "extract or fetch them again"),
    "wrong width": Reason(
        "feature has another width", "features have another width", _SKIPPED + "is --dim what they were made with?"
    ),
    "not finite": Reason("feature is not finite", "features are not finite", _SKIPPED + "extract them again"),
    "window outside": Reason(
        "window ends after its video, or before it begins",
        "windows end after their video, or before they begin",
        "is the table of frames of these videos, and counted at the same rate?",
    ),
    "window twice": Reason("window is there twice", "windows are there twice", "remove one of the files"),
    "no windows": Reason(
        "video of a sentence has no features",
        "videos of sentences have no features",
        "its sentences train nothing and are left out of the score; are the names the same in both?",
    ),
    "no vector": Reason(
        "sentence has no vector", "sentences have no vector", _LEFT_OUT + "were they encoded from the same file?"
    ),
    "bad vector": Reason(
        "sentence has a vector of another width or with NaN",
        "sentences have vectors of another width or with NaN",
        _LEFT_OUT + "encode them again",
    ),
    "duplicate id": Reason("sentence has an id of another", "sentences have ids of others", _LEFT_OUT + "rename them"),
    "empty query": Reason("sentence has no words", "sentences have no words", _LEFT_OUT + "write them or drop them"),
    "end before start": Reason(
        "moment ends before it starts", "moments end before they start", _LEFT_OUT + "swap or drop these times"
    ),
    "zero length": Reason("moment has no length", "moments have no length", _LEFT_OUT + "repair or drop these times"),
    "beyond the video": Reason(
        "moment lies beyond its video",
        "moments lie beyond their videos",
        _LEFT_OUT + "are times in seconds (of tacos in frames), and durations those of these videos?",
    ),
    "not a time": Reason("moment has no finite times", "moments have no finite times", _LEFT_OUT + "repair them"),
    "bad duration": Reason("duration is no length", "durations are no lengths", _LEFT_OUT + "repair them"),
    "no name": Reason("sentence lacks qid or video", "sentences lack qid or video", _LEFT_OUT + "name them"),
    "not an annotation": Reason(
        "line is no annotation of this form", "lines are no annotations of this form", "is --format right?"
    ),
    "record": Reason("record does not fit itself", "records do not fit themselves", _AGAIN),
}


def check(words: Sequence[str]) -> None:
    """Run `--check DIR` with its options. Exit with status 1 if there are problems."""
    parser = check_parser(__doc__)
    parser.add_argument("--dim", type=int, default=4096, help="width of a window's feature (default: %(default)s)")
    parser.add_argument("--frames", type=Path, help="pickled dict of frame counts by video")
    parser.add_argument("--ending", default="", help="for our features: ending of video names in the annotations")
    parser.add_argument("--sentences", type=Path, help="file of sentence vectors, or of annotations")
    parser.add_argument("--format", default=PICKLE, choices=FORMS, help="form of that file (default: %(default)s)")
    parser.add_argument("--durations", type=Path, help="for charades: csv with the columns id and length")
    parser.add_argument("--vectors", type=Path, help="sentence vectors by qid: .npz file, or folder of .npy")
    parser.add_argument(
        "--sentence_dim", type=int, default=4800, help="width of a pickle's vectors (default: %(default)s)"
    )
    run_check(parser.parse_args(words), _check, REASONS)


def check_record(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    """Yield the problems of a prepared video or sentence."""
    if "vector" in record:
        vector, span = record["vector"], record["span"]
        if vector.shape != (protocol["sentence_dim"],) or not np.isfinite(vector).all():
            yield Problem("bad vector", f"{list(vector.shape)}, the protocol says {protocol['sentence_dim']}")
        if not span[1] > span[0]:
            yield Problem("zero length" if span[1] == span[0] else "end before start", f"frames {span.tolist()}")
        return
    spans, features, count = record["spans"], record["features"], int(record["num_frames"])
    video = record["video"].decode()
    if len(spans) != len(features) or features.shape[1:] != (protocol["feature_dim"],):
        yield Problem("record", f"{video}: {len(spans)} windows, features {list(features.shape)}")
    if not np.isfinite(features).all():
        yield Problem("not finite", video)
    yield from _outside(video, spans, count)
    if len(np.unique(spans, axis=0)) != len(spans):
        yield Problem("window twice", video)


def _check(arguments: argparse.Namespace) -> Iterator[Found]:
    folder = arguments.check
    if (folder / PROTOCOL).exists():
        yield from check_prepared(folder, check_record, arguments.workers)
        videos = _prepared_videos(folder) if arguments.sentences else set()
    else:
        frames = ctrl_windows.frame_counts(arguments.frames) if arguments.frames else {}
        if ctrl_windows.is_own(folder):
            items = ctrl_windows.feature_items(folder, frames, arguments.ending)
            function = functools.partial(_check_features, root=folder)
        else:
            items = ctrl_windows.window_items(folder, frames)
            function = functools.partial(_check_windows, root=folder, dim=arguments.dim)
        yield from check_each(function, items, arguments.workers, "checking features, videos")
        videos = {item["video"] for item in items}
    if arguments.sentences:
        yield _check_sentences(arguments, videos)


def _check_windows(item: Mapping[str, Any], *, root: Path, dim: int) -> Found:
    problems, spans, names = [], [], {}
    for name in item["files"]:
        if not item["video"]:
            problems.append(Problem("name", str(root / name)))
            continue
        feature = ctrl_windows.read_window(root / name, dim)
        if isinstance(feature, Skip):
            problems.append(Problem(feature.reason, f"{root / name}: {feature.detail}"))
        span = parse(name)[1:]
        if span in names:
            problems.append(Problem("window twice", f"{root / names[span]} and {name}"))
        names[span] = name
        spans.append(span)
    spans = np.array(spans, np.int64).reshape(-1, 2)
    problems += _outside(item["video"], spans, item["num_frames"])
    return Found({"videos": int(bool(item["video"])), "files": len(item["files"])}, problems)


def _check_features(item: Mapping[str, Any], *, root: Path) -> Found:
    problems = []
    try:
        features = feature_files.load(root, item["name"])
        if not len(features) or not np.isfinite(features).all():
            problems.append(
                Problem("not finite", f"{feature_files.feature_path(root, item['name'])}: {len(features)} rows")
            )
    except FeatureError as error:
        problems.append(Problem("unreadable", str(error)))
    return Found({"videos": 1}, problems)


def _outside(video: str, spans: np.ndarray, count: int) -> Iterator[Problem]:
    for start, end in spans.tolist():
        if end <= start or start < 1 or (count and end > count):
            has = f", the video has {count} frames" if count else ""
            yield Problem("window outside", f"{video}: frames {start} to {end}{has}")


def _prepared_videos(folder: Path) -> set[str]:
    split = Split(folder, WINDOWS)
    return {record["video"].decode() for record in read_records(split, WINDOW_FEATURES)}


def _check_sentences(arguments: argparse.Namespace, videos: set[str]) -> Found:
    path, problems = arguments.sentences, []
    if arguments.format == PICKLE:
        clips = ctrl_sentences.read_sentences(path, arguments.sentence_dim)
        found = ctrl_sentences.as_annotations(clips)
        problems += [
            Problem("bad vector", f"{path}: {clip.name}") for clip in clips if not np.isfinite(clip.vectors).all()
        ]
    else:
        found = ctrl_sentences.read_annotations(path, arguments.format, arguments.durations)
    problems += [Problem(fault.reason, f"{path}: {fault.item}: {fault.detail}") for fault in found.faults]
    asked: dict[str, int] = {}
    for query in found.queries:
        asked[query.video] = asked.get(query.video, 0) + 1
    problems += [
        Problem("no windows", f"{video}: {number} sentences")
        for video, number in sorted(asked.items())
        if video not in videos
    ]
    if arguments.vectors:
        vectors = ctrl_sentences.read_vectors(arguments.vectors)
        dim = ctrl_sentences.vector_dim(vectors, [{"qid": query.qid} for query in found.queries])
        skips = (ctrl_sentences.vector_of(vectors, query.qid, dim) for query in found.queries)
        problems += [Problem(skip.reason, f"{skip.item}: {skip.detail}") for skip in skips if isinstance(skip, Skip)]
    return Found({"sentences": len(found.queries) + len(found.faults), "annotated videos": len(asked)}, problems)

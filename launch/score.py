"""Score predictions: python launch/score.py --predictions FILE.jsonl --annotations FILE [--format FORM]

Predictions are lines of {qid, seconds: [[start, end, score], ...]}, best first, as launch/predict.py and
launch/evaluate.py write them; lighthouse's key `pred_relevant_windows` is read as well. Annotations have any form of
`vlm_jax/annotations.py`. With `--format ego4d`, both files are those of the Ego4D challenge. With `--format questions`
or `choices`, predictions are lines of {qid, prediction}, and annotations the JSON lines of docs/snps3.md.

A prediction is right if its IoU is at least the threshold; in `ego4d` it must be greater. Queries without predictions
count as wrong; in `ego4d`, queries that the result file lacks do not count.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _cli
import numpy as np

from vlm_jax import annotations
from vlm_jax.annotations import FORMS, AnnotationError
from vlm_jax.metrics import didemo, moments
from vlm_jax.systems.snps3.annotations import read_lines

EGO4D = "ego4d"
ASKED = ("questions", "choices")
"""Forms of annotations of open questions and of questions with options."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, type=Path)
    parser.add_argument("--annotations", required=True, type=Path)
    parser.add_argument(
        "--format",
        default="jsonl",
        choices=(*FORMS, EGO4D, *ASKED),
        help="form of the annotations (default: %(default)s)",
    )
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="IoU thresholds")
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 5], help="numbers of predictions that recall counts")
    parser.add_argument("--output", type=Path, help="also write the metrics to this JSON file")
    arguments = parser.parse_args()
    if min(arguments.ks) < 1 or not all(0 < threshold <= 1 for threshold in arguments.thresholds):
        raise AnnotationError("--ks, --thresholds: expected numbers from 1 on, and overlaps above 0 and up to 1")
    scores = {EGO4D: score_ego4d, **dict.fromkeys(ASKED, score_answers)}
    metrics = scores.get(arguments.format, score)(arguments)
    for name, value in metrics.items():
        print(f"{name:<22} {value:g}" if value == int(value) else f"{name:<22} {value:.2f}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(metrics, indent=2) + "\n")


def score(arguments: argparse.Namespace) -> dict[str, float]:
    """Return recall and mIoU in percent, and counts; `didemo` and `qvhighlights` add their own metrics.

    Raises:
      AnnotationError: if no prediction belongs to a query of the annotations, or no query has a moment.
    """
    found = annotations.read(arguments.annotations, arguments.format)
    judged = [query for query in found.queries if query.spans]
    predictions = read_predictions(arguments.predictions)
    if not judged:
        raise AnnotationError(f"{arguments.annotations}: no query has a moment to compare with")
    if not predictions.keys() & {query.qid for query in judged}:
        first, other = next(iter(predictions)), judged[0].qid
        raise AnnotationError(
            f"{arguments.predictions}: no prediction is of a query of {arguments.annotations}: it has qid {first!r} "
            f"and so on, the annotations {other!r}"
        )
    nothing = np.zeros((0, 3))
    ours = [predictions.get(query.qid, nothing) for query in judged]
    truths = [np.array(query.spans) for query in judged]
    table = 100 * moments.recall_table(ours, truths, arguments.thresholds, arguments.ks, strict=False)
    metrics = {
        f"R{k}@{threshold:g}": float(table[row, column])
        for row, threshold in enumerate(arguments.thresholds)
        for column, k in enumerate(arguments.ks)
    }
    metrics["mIoU"] = 100 * moments.mean_top_overlap(ours, truths)
    if arguments.format == "didemo":
        metrics |= didemo.metrics(ours, truths)
    elif arguments.format == "qvhighlights":
        metrics |= moments.precision_metrics(ours, truths)
    known = {query.qid for query in found.queries}
    return metrics | {
        "queries": len(judged),
        "without_predictions": sum(query.qid not in predictions for query in judged),
        "without_moments": len(found.queries) - len(judged),
        "unknown_predictions": sum(qid not in known for qid in predictions),
        "annotations_left_out": len(found.faults),
    }


def score_ego4d(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the challenge's metrics in percent over the queries of the result file, as the challenge's script does.

    Raises:
      AnnotationError: for a file of another form.
    """
    results, truth = _json(arguments.predictions), _json(arguments.annotations)
    if not isinstance(results, dict) or not isinstance(results.get("results"), list) or not results["results"]:
        raise AnnotationError(
            f"{arguments.predictions}: expected the challenge's result file, an object with 'results'"
        )
    if not isinstance(truth, dict) or "videos" not in truth:
        raise AnnotationError(f"{arguments.annotations}: expected the challenge's annotations, an object with 'videos'")
    try:
        predictions, truths = moments.ego4d_pairs(results["results"], truth)
        queries = sum(
            len(part["language_queries"])
            for video in truth["videos"]
            for clip in video["clips"]
            for part in clip["annotations"]
        )
    except KeyError as error:
        raise AnnotationError(
            f"{arguments.predictions}, {arguments.annotations}: an entry has no key {error}"
        ) from None
    except (TypeError, ValueError) as error:
        raise AnnotationError(f"{arguments.predictions}: {error}") from None
    metrics = moments.moment_metrics(predictions, truths, tuple(arguments.thresholds), tuple(arguments.ks))
    return metrics | {"queries": len(truths), "without_predictions": queries - len(truths)}


def score_answers(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the accuracy in percent of the questions with a known answer; those without a prediction are wrong.

    Raises:
      AnnotationError: if no prediction belongs to a question of the annotations.
    """
    lines, faults = read_lines(arguments.annotations, arguments.format)
    truths = {str(line.key): {str(answer).strip().lower() for answer in line.answers} for line in lines if line.answers}
    predictions = {}
    for place, entry in _entries(arguments.predictions):
        if "prediction" not in entry:
            raise AnnotationError(f"{place}: expected 'prediction', found {', '.join(entry)}")
        predictions[str(entry["qid"])] = str(entry["prediction"]).strip().lower()
    if not predictions.keys() & truths.keys():
        raise AnnotationError(
            f"{arguments.predictions}: no prediction is of a question of {arguments.annotations} with a known answer"
        )
    right = sum(predictions.get(qid) in answers for qid, answers in truths.items())
    return {
        "accuracy": 100 * right / len(truths),
        "questions": len(truths),
        "without_predictions": sum(qid not in predictions for qid in truths),
        "annotations_left_out": len(faults),
    }


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Return segments by qid, best first: `[K, 2 or more]`, start and end in seconds.

    Raises:
      AnnotationError: for a line that is something else; it names the first one.
    """
    found: dict[str, np.ndarray] = {}
    for place, entry in _entries(path):
        qid = str(entry["qid"])
        segments = entry.get("seconds", entry.get("pred_relevant_windows"))
        if segments is None and "frames" in entry:
            raise AnnotationError(f"{place}: only frames, no seconds; prepare the windows with --fps to have both")
        found[qid] = _segments(segments, place)
    return found


def _entries(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the lines of a file of predictions, each with its place in messages.

    Raises:
      AnnotationError: for a line that is no object with a `qid` of its own, or a file without lines.
    """
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, Mapping) or "qid" not in entry:
            raise AnnotationError(f"{path}: line {number}: expected a JSON object with 'qid', found {line[:60]!r}")
        qid = str(entry["qid"])
        if qid in found:
            raise AnnotationError(f"{path}: line {number}: qid {qid!r} is there twice")
        found[qid] = f"{path}: line {number}", entry
    if not found:
        raise AnnotationError(f"{path}: holds no predictions")
    return list(found.values())


def _segments(value: Any, place: str) -> np.ndarray:
    try:
        segments = np.array(value, np.float64)
        segments = segments.reshape(0, 3) if not segments.size else segments
    except (TypeError, ValueError):
        segments = np.zeros(0)
    if segments.ndim != 2 or segments.shape[1] < 2 or not np.isfinite(segments).all():
        raise AnnotationError(f"{place}: expected 'seconds', a list of [start, end, score], found {str(value)[:60]}")
    return segments


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise AnnotationError(f"{path}: not JSON ({error})") from None


if __name__ == "__main__":
    _cli.run(main)

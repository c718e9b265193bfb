"""Show results: python launch/figures.py retrieval|timeline|table|compare|seeds ...

retrieval   picture of a few queries, each with frames of its best items and their scores
timeline    picture of a few sentences, each with frames along its video, the truth and the ranked moments
table       results beside those of the untrained network and of chance
compare     every metric of one or several runs, one row each, such as those of all actions
seeds       mean, standard deviation and range over runs that differ only in their seed
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _cli

from vlm_jax.errors import ConfigError
from vlm_jax.figures import draw_retrieval, draw_timeline

COUNTED = ("queries", "keyframes", "texts", "questions")
"""Metrics that say how many items an evaluation has; it has one of them at most."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    picture = commands.add_parser("retrieval", help="draw queries and their best items, with frames")
    picture.add_argument("--results", required=True, type=Path, help="NAME_rankings.json of an evaluation")
    picture.add_argument("--videos", required=True, type=Path, help="folder of the videos")
    picture.add_argument("--output", required=True, type=Path, help="picture to write")
    picture.add_argument("--queries", type=int, default=5, help="number of queries (default: %(default)s)")
    picture = commands.add_parser("timeline", help="draw sentences and their moments along the video")
    picture.add_argument("--predictions", required=True, type=Path, help="NAME_queries.jsonl or predictions.jsonl")
    picture.add_argument("--videos", required=True, type=Path, help="folder of the videos")
    picture.add_argument("--output", required=True, type=Path, help="picture to write")
    picture.add_argument("--queries", type=int, default=4, help="number of sentences (default: %(default)s)")
    table = commands.add_parser("table", help="print metrics beside those of the untrained network and of chance")
    table.add_argument("sets", nargs="+", metavar="RUN:EVALUATOR[=TITLE]")
    table.add_argument("--metrics", nargs="+", default=["R@1", "R@5", "R@10", "median_rank"])
    rows = commands.add_parser("compare", help="print all metrics of runs side by side")
    rows.add_argument("sets", nargs="+", metavar="RUN:EVALUATOR[=TITLE]")
    rows.add_argument("--prefix", default="", help="print only metrics that begin so, such as AP/")
    seeds = commands.add_parser("seeds", help="print mean, standard deviation and range over seeds")
    seeds.add_argument("--workdirs", required=True, type=Path, nargs="+", help="run folders, named NAME-SEED")
    seeds.add_argument("--evaluators", required=True, nargs="+")
    seeds.add_argument("--metrics", required=True, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "seeds":
        print_seeds(arguments.workdirs, arguments.evaluators, arguments.metrics)
    elif arguments.command == "table":
        print_table(arguments.sets, arguments.metrics)
    elif arguments.command == "compare":
        print_comparison(arguments.sets, arguments.prefix)
    elif arguments.command == "timeline":
        lines = read_lines(arguments.predictions)
        draw_timeline(lines, arguments.videos, arguments.output, arguments.queries)
        print(f"{arguments.output}: {min(arguments.queries, len(lines))} of {len(lines)} sentences")
    else:
        queries = draw_retrieval(arguments.results, arguments.videos, arguments.output, arguments.queries)
        print(f"{arguments.output}: {min(arguments.queries, queries)} of {queries} queries")


def read_lines(predictions: Path) -> list[dict[str, Any]]:
    """Return the lines of NAME_queries.jsonl or predictions.jsonl.

    Raises:
      ConfigError: if the file is missing or empty, or its moments are not in seconds.
    """
    if not predictions.is_file():
        raise ConfigError(f"{predictions}: no such file; run launch/evaluate.py or launch/predict.py first")
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    if not lines or not all("seconds" in line for line in lines):
        raise ConfigError(f"{predictions}: no sentences with moments in seconds")
    return lines


def read_results(workdir: Path, evaluator: str) -> dict:
    """Return the results that an evaluator wrote.

    Raises:
      ConfigError: if the run was not evaluated.
    """
    path = workdir / "results" / f"{evaluator}.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run launch/evaluate.py first")
    return json.loads(path.read_text())


def print_seeds(workdirs: Sequence[Path], evaluators: Sequence[str], metrics: Sequence[str]) -> None:
    """Print a Markdown table with mean, standard deviation and range of every metric over seeds."""
    runs: dict[str, list[Path]] = {}
    for workdir in sorted(workdirs):
        runs.setdefault(workdir.name.rpartition("-")[0], []).append(workdir)
    print("| run | evaluated on | seeds |", " | ".join(metrics), "|")
    print("| --- " * (3 + len(metrics)) + "|")
    for name, folders in runs.items():
        for evaluator in evaluators:
            found = [read_results(folder, evaluator)["metrics"] for folder in folders]
            cells = [_spread([metrics_of_run[metric] for metrics_of_run in found]) for metric in metrics]
            print(f"| {name} | {evaluator} | {len(folders)} |", " | ".join(cells), "|")


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} \u00b1 {deviation:.3f} ({min(values):.3f} to {max(values):.3f})"


def print_table(sets: Sequence[str], metrics: Sequence[str]) -> None:
    """Print one table: for every set the trained network, the untrained one if it was evaluated, and chance.

    Args:
      sets: Evaluated runs, as `RUN:EVALUATOR` or `RUN:EVALUATOR=TITLE`.
      metrics: Names of the metrics, one column each.
    """
    rows: list[tuple[str, ...]] = []
    counted: dict[str, str] = {}
    for entry in sets:
        place, _, title = entry.partition("=")
        run, _, evaluator = place.rpartition(":")
        workdir = Path(run)
        trained = read_results(workdir, evaluator)["metrics"]
        found = {
            "trained": [trained.get(name) for name in metrics],
            "untrained": _untrained(workdir, evaluator, metrics),
            "chance": [_chance(trained, name) for name in metrics],
        }
        counts = {name: f"{trained[name]:.0f}" for name in COUNTED if name in trained}
        counted |= counts
        heads = iter([(title or evaluator, *(counts.values() or ("",)))])
        for name, values in found.items():
            if any(value is not None for value in values):
                rows.append((*next(heads, ("", "")), name, *map(_cell, metrics, values)))
    rows.insert(0, ("", " or ".join(counted), "", *(metric.replace("_", " ") for metric in metrics)))
    _print_rows(rows, texts=3)


def print_comparison(sets: Sequence[str], prefix: str) -> None:
    """Print every metric whose name begins with `prefix`, one row per metric and one column per evaluation.

    Args:
      sets: Evaluated runs, as `RUN:EVALUATOR` or `RUN:EVALUATOR=TITLE`.
      prefix: Beginning of the metrics' names; '' for all.
    """
    columns: dict[str, Mapping[str, float | None]] = {}
    for entry in sets:
        place, _, title = entry.partition("=")
        run, _, evaluator = place.rpartition(":")
        columns[title or place] = read_results(Path(run), evaluator)["metrics"]
    names = dict.fromkeys(name for found in columns.values() for name in found if name.startswith(prefix))
    if not names:
        raise ConfigError(f"--prefix: no metric begins with {prefix!r}")
    rows = [(name, *(_cell(name, found.get(name)) for found in columns.values())) for name in names]
    _print_rows([("", *columns), *rows], texts=1)


def _print_rows(rows: Sequence[Sequence[str]], texts: int) -> None:
    """Print aligned columns, of which the first `texts` are texts and the others are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:texts], widths, strict=False)]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[texts:], widths[texts:], strict=True)]
        print("  ".join(cells).rstrip())


def _cell(metric: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if metric.endswith(("median_rank", "-mr")) else f"{value:.3f}"


def _untrained(workdir: Path, evaluator: str, metrics: Sequence[str]) -> list[float | None]:
    """Return the metrics that the run logged before its first step, None where it logged none."""
    log = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    first = next((line for line in lines if line["step"] == 0 and f"{evaluator}/{metrics[0]}" in line), {})
    return [first.get(f"{evaluator}/{name}") for name in metrics]


def _chance(trained: Mapping[str, float], metric: str) -> float | None:
    if metric == "median_rank" and "chance/R@1" in trained:
        return (trained["queries"] + 1) / 2
    return trained.get(f"chance/{metric}")


if __name__ == "__main__":
    _cli.run(main)

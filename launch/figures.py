"""Shows results: python launch/figures.py retrieval|timeline|table|seeds ...

retrieval   a few queries, each with frames of its best items and their scores, as a picture
timeline    a few sentences, each with frames along its video, the truth and the ranked moments, as a picture
table       a result beside the untrained network's and chance
seeds       means and spreads over runs that differ in their seed alone
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _cli

from vlm_jax.errors import ConfigError
from vlm_jax.figures import draw_retrieval, draw_timeline


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    picture = commands.add_parser("retrieval", help="queries and their best items, with frames")
    picture.add_argument("--results", required=True, type=Path, help="NAME_rankings.json of an evaluation")
    picture.add_argument("--videos", required=True, type=Path, help="folder of the videos")
    picture.add_argument("--output", required=True, type=Path, help="picture to write")
    picture.add_argument("--queries", type=int, default=5, help="how many (default: %(default)s)")
    picture = commands.add_parser("timeline", help="sentences and their moments along the video")
    picture.add_argument("--predictions", required=True, type=Path, help="NAME_queries.jsonl or predictions.jsonl")
    picture.add_argument("--videos", required=True, type=Path, help="folder of the videos")
    picture.add_argument("--output", required=True, type=Path, help="picture to write")
    picture.add_argument("--queries", type=int, default=4, help="how many (default: %(default)s)")
    table = commands.add_parser("table", help="metrics beside the untrained network's and chance")
    table.add_argument("--workdir", required=True, type=Path)
    table.add_argument("--evaluator", required=True)
    seeds = commands.add_parser("seeds", help="means and spreads over seeds")
    seeds.add_argument("--workdirs", required=True, type=Path, nargs="+", help="NAME-SEED, one a run")
    seeds.add_argument("--evaluators", required=True, nargs="+")
    seeds.add_argument("--metrics", required=True, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "seeds":
        print_seeds(arguments.workdirs, arguments.evaluators, arguments.metrics)
    elif arguments.command == "table":
        print_table(arguments.workdir, arguments.evaluator)
    elif arguments.command == "timeline":
        lines = read_lines(arguments.predictions)
        draw_timeline(lines, arguments.videos, arguments.output, arguments.queries)
        print(f"{arguments.output}: {min(arguments.queries, len(lines))} of {len(lines)} sentences")
    else:
        queries = draw_retrieval(arguments.results, arguments.videos, arguments.output, arguments.queries)
        print(f"{arguments.output}: {min(arguments.queries, queries)} of {queries} queries")


def read_lines(predictions: Path) -> list[dict[str, Any]]:
    """Lines of NAME_queries.jsonl or predictions.jsonl.

    Raises:
      ConfigError: where the file is missing, or its moments are not in seconds.
    """
    if not predictions.is_file():
        raise ConfigError(f"{predictions}: no such file; run launch/evaluate.py or launch/predict.py first")
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    if not lines or not all("seconds" in line for line in lines):
        raise ConfigError(f"{predictions}: no sentences with moments in seconds")
    return lines


def read_results(workdir: Path, evaluator: str) -> dict:
    """What an evaluator wrote.

    Raises:
      ConfigError: where the run was not evaluated.
    """
    path = workdir / "results" / f"{evaluator}.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run launch/evaluate.py first")
    return json.loads(path.read_text())


def print_seeds(workdirs: Sequence[Path], evaluators: Sequence[str], metrics: Sequence[str]) -> None:
    """Prints mean, standard deviation and least and greatest value of every metric, as a Markdown table."""
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


def print_table(workdir: Path, evaluator: str) -> None:
    """Prints trained, untrained and chance side by side."""
    results = read_results(workdir, evaluator)
    trained, checkpoint = results["metrics"], results["checkpoint"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    untrained = next((line for line in lines if line["step"] == 0 and f"{evaluator}/R@1" in line), {})
    print(f"text-to-video retrieval, {trained['queries']:.0f} queries, each against {trained['queries']:.0f} windows")
    print(f"{'':<14}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'median rank':>14}")
    rows = {
        "trained": [trained.get(name) for name in ("R@1", "R@5", "R@10", "median_rank")],
        "untrained": [untrained.get(f"{evaluator}/{name}") for name in ("R@1", "R@5", "R@10", "median_rank")],
        "chance": [*(trained[f"chance/R@{k}"] for k in (1, 5, 10)), (trained["queries"] + 1) / 2],
    }
    for name, values in rows.items():
        cells = [
            "-" if value is None else f"{value:.1f}" if n == 3 else f"{value:.3f}" for n, value in enumerate(values)
        ]
        print(f"{name:<14}{cells[0]:>8}{cells[1]:>8}{cells[2]:>8}{cells[3]:>14}")
    print(f"from {checkpoint}")


if __name__ == "__main__":
    _cli.run(main)

"""Shows results: python launch/figures.py retrieval|timeline|table|seeds ...

retrieval   a few queries, each with frames of its best items and their scores, as a picture
timeline    a few sentences, each with frames along its video, the truth and the ranked moments, as a picture
table       a result beside the untrained network's and chance
seeds       means and spreads over runs that differ in their seed alone
"""

import argparse
import glob
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _cli
import numpy as np

from vlm_jax.errors import ConfigError, MissingPackageError

GREEN, GREY, BLUE = "#1a7f37", "#57606a", "#0969da"
SHOWN = 5
"""Moments of a sentence that are drawn."""


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
        draw_timeline(arguments.predictions, arguments.videos, arguments.output, arguments.queries)
    else:
        draw_retrieval(arguments.results, arguments.videos, arguments.output, arguments.queries)


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


def draw_retrieval(results: Path, videos: Path, output: Path, count: int) -> None:
    """Draws queries, evenly taken, each with the middle frames of its three best items.

    Raises:
      ConfigError: where the rankings are missing.
    """
    plt = _pyplot()
    if not results.is_file():
        raise ConfigError(f"{results}: no such file; run launch/evaluate.py first")
    queries = json.loads(results.read_text())
    chosen = [queries[i] for i in np.unique(np.linspace(0, len(queries) - 1, count).round().astype(int))]
    best, frames = 3, 3
    figure, axes = plt.subplots(
        len(chosen),
        best * frames + best - 1,
        figsize=(14, 1.75 * len(chosen)),
        squeeze=False,
        width_ratios=([1] * frames + [0.12]) * (best - 1) + [1] * frames,
    )
    for row, query in zip(axes, chosen, strict=True):
        for cell in row:
            cell.axis("off")
        row[0].text(
            0,
            1.42,
            f"\u201c{query['text']}\u201d   true window ranked {query['rank']} of {len(queries)}",
            transform=row[0].transAxes,
            fontsize=10,
            weight="bold",
            va="bottom",
        )
        for place, item in enumerate(query["best"][:best]):
            cells = row[place * (frames + 1) : place * (frames + 1) + frames]
            right = item["item"] == query["item"]
            for cell, frame in zip(cells, _frames(videos / item["video_id"], item, frames), strict=True):
                cell.imshow(frame)
            cells[0].set_title(
                f"{place + 1}. {Path(item['video_id']).stem} {item['start']:.1f}-{item['end']:.1f} s"
                f"   score {item['score']:.1f}" + ("   \u2713" if right else ""),
                loc="left",
                fontsize=8,
                color=GREEN if right else GREY,
            )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.01, hspace=0.75, wspace=0.03)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)
    print(f"{output}: {len(chosen)} of {len(queries)} queries")


def draw_timeline(predictions: Path, videos: Path, output: Path, count: int) -> None:
    """Draws sentences, evenly taken: frames along the video, the truth where it is known, and the ranked moments.

    A mark says that a moment and the truth share half of what both cover.

    Raises:
      ConfigError: where predictions are missing or not in seconds, or a video is.
    """
    plt = _pyplot()
    if not predictions.is_file():
        raise ConfigError(f"{predictions}: no such file; run launch/evaluate.py or launch/predict.py first")
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    if not lines or not all("seconds" in line for line in lines):
        raise ConfigError(f"{predictions}: no sentences with moments in seconds")
    chosen = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, count).round().astype(int))]
    inches = 2.4 * len(chosen)
    figure, axes = plt.subplots(len(chosen), 1, figsize=(14, inches), squeeze=False)
    for bars, line in zip(axes[:, 0], chosen, strict=True):
        strip = bars.inset_axes((0, 1.05, 1, 0.8))
        path = _video(videos, line["video"])
        truth, ranked = line.get("truth", []), line["seconds"][:SHOWN]
        seconds = _draw_strip(strip, path)
        strip.set_title(f"\u201c{line['query']}\u201d   {line['video']}", loc="left", fontsize=10, weight="bold")
        for start, end in truth:
            strip.axvspan(start, end, 0, 0.06, color=GREEN)
            bars.axvspan(start, end, color=GREEN, alpha=0.15, linewidth=0)
            bars.barh("truth", end - start, left=start, height=0.7, color=GREEN)
        if not truth:
            bars.barh("truth unknown", 0)
        for place, (start, end, score) in enumerate(ranked, start=1):
            bars.barh(f"{place}.", end - start, left=start, height=0.7, color=BLUE, alpha=max(0.15, 1 - 0.2 * place))
            right = any(min(end, b) - max(start, a) >= 0.5 * (max(end, b) - min(start, a)) for a, b in truth)
            fits = end < 0.85 * seconds
            bars.text(
                end if fits else start,
                f"{place}.",
                f" {start:.1f} to {end:.1f} s   {score:.3f} " + ("\u2713 " if right else ""),
                ha="left" if fits else "right",
                va="center",
                fontsize=8,
                color=GREEN if right else GREY,
            )
        bars.set(xlim=(0, seconds), xlabel="seconds", ylim=(len(ranked) + 0.6, -0.6))
        bars.tick_params(labelsize=8, left=False)
        bars.spines[["top", "right", "left"]].set_visible(False)
    figure.subplots_adjust(left=0.05, right=0.99, top=1 - 1.05 / inches, bottom=0.45 / inches, hspace=1.5)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)
    print(f"{output}: {len(chosen)} of {len(lines)} sentences")


def _draw_strip(axes: Any, path: Path) -> float:
    """Frames along a video; returns its seconds."""
    from vlm_jax.video import decode

    seconds, frames = decode.probe(path).duration, 16
    for number, frame in enumerate(_frames(path, {"start": 0.0, "end": seconds}, frames)):
        axes.imshow(frame, extent=(number * seconds / frames, (number + 0.97) * seconds / frames, 0, 1), aspect="auto")
    axes.set(xlim=(0, seconds), ylim=(0, 1))
    axes.axis("off")
    return seconds


def _video(folder: Path, name: str) -> Path:
    """The file of a video, whose name may lack the ending.

    Raises:
      ConfigError: where there is none.
    """
    for path in (folder / name, *sorted(folder.glob(f"{glob.escape(name)}.*"))):
        if path.is_file():
            return path
    raise ConfigError(f"{folder}: no video {name}")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise MissingPackageError("figures need matplotlib: pip install 'vlm_jax[figures]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _frames(path: Path, item: dict, count: int) -> list[np.ndarray]:
    """Frames from the middles of equal parts of an item."""
    from vlm_jax.video import decode

    times = item["start"] + (np.arange(count) + 0.5) / count * (item["end"] - item["start"])
    filters = decode.square_crop(160)
    return [decode.read_clip(path, start=round(time, 3), num_frames=1, fps=5, filters=filters)[0] for time in times]


if __name__ == "__main__":
    _cli.run(main)

"""Figures of results (needs the extra `figures`)."""

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.errors import ConfigError, MissingPackageError

GREEN, GREY, BLUE = "#1a7f37", "#57606a", "#0969da"
DPI = 150
WIDTH = 14.0
"""Width of a figure, inches."""
SHOWN = 5
"""Number of moments drawn per sentence."""
BEST = 3
"""Number of videos or windows drawn per query."""


class Shown(NamedTuple):
    """Part of a video in a picture of ranked videos.

    Attributes:
      path: File of the video.
      start: Start of the part, seconds.
      end: Its end; None for the end of the video.
      score: Score.
      right: True for a match that is known.
    """

    path: Path
    start: float
    end: float | None
    score: float
    right: bool = False


def draw_retrieval(results: Path, videos: Path, output: Path, count: int) -> int:
    """Draw queries at even intervals, each with frames of its three best items; return the number of all queries.

    Args:
      results: File of rankings, written by evaluation: JSON, or JSON lines where items have one or two levels.
      videos: Folder of the videos.
      output: Picture to write.
      count: Number of queries to draw.

    Raises:
      ConfigError: If the rankings are missing, or are none.
    """
    if not results.is_file():
        raise ConfigError(f"{results}: no such file; run launch/evaluate.py first")
    text = results.read_text(encoding="utf-8")
    try:
        lines = results.suffix == ".jsonl"
        queries = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        chosen = [queries[i] for i in np.unique(np.linspace(0, len(queries) - 1, count).round().astype(int))]
        rows = [(_ranked_by_level if lines else _ranked)(query, videos, len(queries)) for query in chosen]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{results}: no rankings of a retrieval evaluation ({error!r})") from None
    draw_ranked(rows, output)
    return len(queries)


def _ranked(query: Mapping[str, Any], videos: Path, total: int) -> tuple[str, list[Shown]]:
    """Return title and best items of a query of windows."""
    best = [
        Shown(videos / item["video_id"], item["start"], item["end"], item["score"], item["item"] == query["item"])
        for item in query["best"]
    ]
    return f"{quoted(query['text'])}   true window ranked {query['rank']} of {total}", best


def _ranked_by_level(query: Mapping[str, Any], videos: Path, total: int) -> tuple[str, list[Shown]]:
    """Return title and best items of a query of whole videos, whose items have the scores of their levels."""
    level, rank = list(query["ranks"].items())[-1]
    places = [{key: item[key] for key in ("video", "start", "end") if key in item} for item in query["best"]]
    best = [
        Shown(
            _video(videos, place["video"]),
            place.get("start", 0.0),
            place.get("end"),
            item[level],
            place in query["truth"],
        )
        for place, item in zip(places[:BEST], query["best"], strict=False)
    ]
    return f"{quoted(query['caption'])}   true video ranked {rank} (of {total} texts)", best


def draw_ranked(rows: Sequence[tuple[str, Sequence[Shown]]], output: Path) -> None:
    """Draw rows of frames, those of the three best parts of videos.

    Args:
      rows: Title of each row and parts of videos, best first.
      output: Picture to write.
    """
    from vlm_jax.video import decode

    plt, frames = _pyplot(), 3
    side, heading = 0.98 * WIDTH / (BEST * frames + 0.6), 0.6  # inches of a frame, and of the text above a row
    inches = len(rows) * (side + heading)
    figure, axes = plt.subplots(
        len(rows),
        BEST * frames + BEST - 1,
        figsize=(WIDTH, inches),
        squeeze=False,
        width_ratios=([1] * frames + [0.12]) * (BEST - 1) + [1] * frames,
    )
    for row, (title, best) in zip(axes, rows, strict=True):
        for cell in row:
            cell.axis("off")
        row[0].text(0, 1.17, title, transform=row[0].transAxes, fontsize=10, weight="bold", va="bottom")
        for place, shown in enumerate(best[:BEST]):
            cells = row[place * (frames + 1) : place * (frames + 1) + frames]
            end = decode.probe(shown.path).duration if shown.end is None else shown.end
            item = {"start": shown.start, "end": end}
            for cell, frame in zip(cells, _frames(shown.path, item, frames), strict=True):
                cell.imshow(frame)
            cells[0].set_title(
                f"{place + 1}. {shorten(shown.path.stem, 24)} {shown.start:.1f}-{end:.1f} s   score {shown.score:.2f}"
                + ("   \u2713" if shown.right else ""),
                loc="left",
                fontsize=8,
                color=GREEN if shown.right else GREY,
            )
    edges = {"left": 0.01, "right": 0.99, "top": 1 - heading / inches, "bottom": 0.05 / inches}
    figure.subplots_adjust(**edges, hspace=heading / side, wspace=0.03)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=DPI)
    plt.close(figure)


def quoted(text: str) -> str:
    """Return a text for a title: cut to 100 characters, in quotation marks."""
    return f"\u201c{shorten(text, 100)}\u201d"


def draw_timeline(lines: Sequence[Mapping[str, Any]], videos: Path, output: Path, count: int) -> None:
    """Draw sentences at even intervals, each with frames of its video, the truth if it is known, and ranked moments.

    A check mark says that a moment overlaps the truth by half or more (intersection over hull).

    Args:
      lines: One per sentence: `video`, `query`, `seconds` `[[start, end, score], ...]` and, where known, `truth`.
      videos: Folder of the videos; a line's `video` may lack the ending.
      output: Picture to write.
      count: Number of sentences to draw.

    Raises:
      ConfigError: If moments are not in seconds, or a video is missing.
    """
    plt = _pyplot()
    if not lines or not all("seconds" in line for line in lines):
        raise ConfigError(f"{output}: no sentences with moments in seconds to draw")
    chosen = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, count).round().astype(int))]
    height, above, below = 1.0, 1.15, 0.45  # inches of the bars, of frames and title above, of the axis below
    inches = len(chosen) * (height + above + below)
    figure, axes = plt.subplots(len(chosen), 1, figsize=(WIDTH, inches), squeeze=False)
    edges = {"left": 0.05, "right": 0.99, "top": 1 - above / inches, "bottom": below / inches}
    figure.subplots_adjust(**edges, hspace=(above + below) / height)
    for bars, line in zip(axes[:, 0], chosen, strict=True):
        strip = bars.inset_axes((0, 1.05, 1, 0.8))
        aspect = (edges["right"] - edges["left"]) * WIDTH / (0.8 * height)
        path = _video(videos, line["video"])
        truth, ranked = line.get("truth", []), line["seconds"][:SHOWN]
        seconds = _draw_strip(strip, path, aspect)
        title = f"\u201c{shorten(line['query'], 90)}\u201d   {shorten(line['video'], 40)}"
        strip.set_title(title, loc="left", fontsize=10, weight="bold")
        for start, end in truth:
            strip.axvspan(start, end, 0, 0.06, color=GREEN)
            bars.axvspan(start, end, color=GREEN, alpha=0.15, linewidth=0)
            bars.barh("truth", end - start, left=start, height=0.7, color=GREEN)
        for place, (start, end, score) in enumerate(ranked, start=1):
            bars.barh(f"{place}.", end - start, left=start, height=0.7, color=BLUE, alpha=max(0.15, 1 - 0.2 * place))
            right = any(min(end, b) - max(start, a) >= 0.5 * (max(end, b) - min(start, a)) for a, b in truth)
            # Behind the bar, else before it, else on it.
            behind, before = end < 0.85 * seconds, start > 0.15 * seconds
            bars.text(
                start if before and not behind else end,
                f"{place}.",
                f" {start:.1f} to {end:.1f} s   {score:.3f} " + ("\u2713 " if right else ""),
                ha="left" if behind else "right",
                va="center",
                fontsize=8,
                color=(GREEN if right else GREY) if behind or before else "black",
            )
        bars.set(xlim=(0, seconds), ylim=(max(1, len(ranked) + bool(truth)) - 0.4, -0.6))
        bars.set_xlabel("seconds", fontsize=8, labelpad=1)
        bars.tick_params(labelsize=8, left=False)
        bars.spines[["top", "right", "left"]].set_visible(False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=DPI)
    plt.close(figure)


def shorten(text: str, most: int) -> str:
    """Return a text cut to at most `most` characters, with an ellipsis if it was cut."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def _draw_strip(axes: Any, path: Path, aspect: float) -> float:
    """Draw square frames along a video to fill a strip of this aspect (width over height); return its seconds."""
    from vlm_jax.video import decode

    seconds, frames = decode.probe(path).duration, max(1, round(aspect))
    for number, frame in enumerate(_frames(path, {"start": 0.0, "end": seconds}, frames)):
        axes.imshow(frame, extent=(number * seconds / frames, (number + 0.97) * seconds / frames, 0, 1), aspect="auto")
    axes.set(xlim=(0, seconds), ylim=(0, 1))
    axes.axis("off")
    return seconds


def _video(folder: Path, name: str) -> Path:
    """Return the file of a video, whose name may lack the ending.

    Raises:
      ConfigError: If there is no such file.
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
    """Return one frame uint8 `[160, 160, 3]` from the middle of each of `count` equal parts of an item."""
    from vlm_jax.video import decode

    seconds, filters = item["end"] - item["start"], decode.square_crop(160)
    parts = (np.arange(count) + 0.5) / count
    if seconds < 1:  # at a fixed rate, a video of a few frames may have none
        frames = decode.read_frames(path, start=item["start"], seconds=max(seconds, 0.1), filters=filters)
        if len(frames):
            return [frames[int(part * len(frames))] for part in parts]
    times = item["start"] + parts * seconds
    return [decode.read_clip(path, start=round(time, 3), num_frames=1, fps=5, filters=filters)[0] for time in times]

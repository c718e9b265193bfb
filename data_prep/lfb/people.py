"""Boxes of the people in films, found by OpenCV's people detector, as a csv file of proposals."""

import argparse
import csv
import functools
import itertools
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

from data_prep.commands import Commands, check_folders
from data_prep.tables import write_rows
from vlm_jax.errors import DataError
from vlm_jax.progress import Progress
from vlm_jax.systems.lfb.boxes import COLUMNS, ENDINGS
from vlm_jax.systems.lfb.people import people_detector
from vlm_jax.video import decode

FPS = 30
"""Frames per second at which the frame of a second is counted, as in keyframes."""


def find_people(arguments: argparse.Namespace) -> None:
    """Write the boxes of all films of a folder. Films that were finished before are not read again.

    Raises:
      DataError: if there is no film, or none can be used.
    """
    check_folders(arguments, "videos")
    films = [path for path in sorted(arguments.videos.iterdir()) if path.suffix.lower() in ENDINGS]
    if not films:
        raise DataError(f"--videos: {arguments.videos}: no films ({', '.join(ENDINGS)})")
    if twice := [name for name, count in Counter(path.stem for path in films).items() if count > 1]:
        raise DataError(f"--videos: {arguments.videos}: several files are called {twice[0]}")
    people_detector("opencv")  # a missing package is an error before workers begin
    # One file per film, so that the same command resumes.
    parts = arguments.output.with_name(f"{arguments.output.name}.parts")
    missing = [path for path in films if not (parts / f"{path.stem}.csv").exists()]
    find = functools.partial(find_in_film, parts=parts, video_start=arguments.video_start)
    faults = []
    with (
        ProcessPoolExecutor(max(1, arguments.workers), multiprocessing.get_context("spawn")) as pool,
        Progress("films", len(films), start=len(films) - len(missing)) as progress,
    ):
        for fault in pool.map(find, missing) if arguments.workers > 1 else map(find, missing):
            faults += [fault] if fault else []
            progress.advance()
    rows = [row for path in films for row in _read(parts / f"{path.stem}.csv")]
    print(f"{arguments.output}: {len(rows)} people in {len(films) - len(faults)} films, {len(faults)} skipped")
    for fault in faults:
        print(f"  {fault}")
    if len(faults) == len(films):
        raise DataError(f"--videos: {arguments.videos}: no film can be used")
    write_rows(arguments.output, COLUMNS, rows)


def find_in_film(path: Path, parts: Path, video_start: int) -> str:
    """Write the people of a film's whole seconds; return what is wrong with the film, '' if it can be used."""
    find, rows = people_detector("opencv"), []
    try:
        with closing(decode.stream_frames(path, fps=FPS)) as frames:
            for second, frame in enumerate(itertools.islice(frames, 0, None, FPS), start=video_start):
                rows += [(path.stem, second, *(f"{value:.4f}" for value in box)) for box in find(frame)]
    except decode.VideoError as error:
        return str(error)
    write_rows(parts / f"{path.stem}.csv", (), rows)
    return ""


def _read(path: Path) -> list[list[str]]:
    """Return the rows of a film's file; none for a film that was skipped."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def add_command(commands: Commands) -> None:
    """Add the command `people` to a program."""
    made = commands.add_parser("people", help="boxes of people in films, by OpenCV's detector (extra: people)")
    made.add_argument("--videos", required=True, type=Path, help="folder of video files")
    made.add_argument("--output", required=True, type=Path, help="csv to write, for --proposals and launch/predict.py")
    made.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")
    made.add_argument("--video_start", type=int, default=0, help="second at which the films begin; 900 for AVA's")
    made.set_defaults(run=find_people)

"""Command `annotations` of SNP-S3: annotation files as data sets publish them (`published_sets.py`), to JSON lines."""

import argparse
import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.commands import Commands
from data_prep.snps3.published_sets import SETS, Item, Options, Row, Unusable, lines_of
from data_prep.tables import read_rows, write_rows
from vlm_jax.errors import DataError
from vlm_jax.files import replacing


class Fault(NamedTuple):
    """Annotation that is left out: its name, the reason in a few words, and what was found."""

    item: str
    reason: str
    detail: str


def convert(arguments: argparse.Namespace) -> None:
    """Write the annotations of a set as JSON lines, and list those that are left out.

    Raises:
      DataError: For files and options that cannot be used.
    """
    chosen = SETS[arguments.set]
    if arguments.split and arguments.split not in chosen.splits:
        raise DataError(
            f"--split: {arguments.split!r}, expected {' or '.join(chosen.splits) or 'none'} for {arguments.set}"
        )
    if arguments.mapping and arguments.set != "msvd_qa":
        raise DataError("--mapping: only msvd_qa needs one")
    wanted = read_names(arguments.videos) if arguments.videos else None
    left_out = read_names(arguments.exclude) if arguments.exclude else ()
    mapping = _read_mapping(arguments.mapping) if arguments.mapping else {}
    options = Options(arguments.split, mapping)
    names = arguments.names or chosen.names
    faults: list[Fault] = []
    videos: set[str] = set()
    count = 0
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output) as partial, open(partial, "w", encoding="utf-8") as file:
        for path in arguments.source:
            for found in _usable(chosen.read(path, options), names, faults):
                if _stem(found["clip_name"]) in left_out:
                    continue
                if wanted is not None and _stem(found["clip_name"]) not in wanted:
                    continue
                file.write(json.dumps(found) + "\n")
                videos.add(found["clip_name"])
                count += 1
        if not count:
            why = f"; {faults[0].item}: {faults[0].reason} ({faults[0].detail})" if faults else ""
            raise DataError(f"{arguments.source[0]}: no annotation of {arguments.set} is left{why}")
    print(f"{arguments.output}: {count} lines on {len(videos)} files, {len(faults)} skipped")
    for reason, number in collections.Counter(fault.reason for fault in faults).most_common():
        print(f"  {number} x {reason}")
    listing = arguments.output.with_suffix(".skipped.csv")
    listing.unlink(missing_ok=True)
    if faults:
        write_rows(listing, Fault._fields, faults)
        print(f"  each with its reason in {listing}")


def read_names(path: Path) -> set[str]:
    """Return the names of videos in a list, without endings: one per line, or the column video_id of a csv file.

    Raises:
      DataError: If the file cannot be read or is empty.
    """
    if path.suffix == ".csv":
        names = [row["video_id"] for row in read_rows(path, ["video_id"])]
    else:
        names = [line.strip() for line in lines_of(path)]
    found = {_stem(name) for name in names if name}
    if not found:
        raise DataError(f"{path}: expected one name of a video per line, found none")
    return found


def _usable(items: Iterator[Item], names: str, faults: list[Fault]) -> Iterator[Row]:
    """Yield the lines of annotations that can be used, with the names of their files; list the others."""
    for item, make in items:
        try:
            fields, row = make()
        except Unusable as error:
            faults.append(Fault(item, *map(str, error.args)))
            continue
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            faults.append(Fault(item, "not in the expected form", f"{type(error).__name__}: {error}"))
            continue
        try:
            name = names.format(**fields)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise DataError(f"--names: {names!r}, expected a form with {', '.join(fields)} in braces") from None
        yield {"clip_name": name, **row}


def _read_mapping(path: Path) -> dict[str, str]:
    """Return the names of MSVD's videos by those of MSVD-QA, from lines `VIDEO vidNUMBER`."""
    pairs = [line.split() for line in lines_of(path) if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{path}: expected lines 'VIDEO vidNUMBER'")
    return {number: video for video, number in pairs}


def _stem(name: str) -> str:
    """Return a name without the ending of a media file; names of videos may have dots."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and 2 <= len(ending) <= 4 and ending.isalnum() and not ending.isdigit() else name


def add_commands(commands: Commands) -> None:
    """Add the command `annotations`."""
    parser = commands.add_parser("annotations", help="published annotation files of data sets, to JSON lines")
    parser.add_argument("--set", required=True, choices=tuple(SETS), help="data set, which tells the form of the files")
    parser.add_argument("--source", required=True, nargs="+", type=Path, help="annotation files")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .jsonl")
    parser.add_argument(
        "--split", default="", help="msrvtt: train, val, test or 7k (train and val); coco by Karpathy: train, val, test"
    )
    parser.add_argument("--videos", type=Path, help="list of the videos to keep, such as MSRVTT_train.9k.csv")
    parser.add_argument("--exclude", type=Path, help="list of videos to leave out, such as MSRVTT_JSFUSION_test.csv")
    parser.add_argument("--mapping", type=Path, help="msvd_qa: youtube_mapping.txt, for the names of MSVD's files")
    parser.add_argument(
        "--names",
        help="form of the file names, such as '{videoid}.mp4'; the defaults are in docs/snps3.md",
    )
    parser.set_defaults(run=convert)

"""Convert annotations to JSON lines: python -m data_prep.annotations --source FILE --format FORM --output NAME.jsonl

The output has one JSON object per line, {qid, video, query, duration, spans (seconds), fps, frames}. launch/predict.py
reads it as a file list, launch/score.py as annotations. `vlm_jax/annotations.py` describes the forms. Annotations that
cannot be used are counted by reason and listed in a csv file beside the output.
"""

import argparse
import collections
import csv
from collections.abc import Sequence
from pathlib import Path

from data_prep import commands
from vlm_jax import annotations
from vlm_jax.annotations import FORMS


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", required=True, type=Path, help="file of annotations; for tacos_raw also the folder of its files"
    )
    parser.add_argument("--format", required=True, choices=tuple(FORMS))
    parser.add_argument("--durations", type=Path, help="for charades: csv with the columns id and length (seconds)")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .jsonl")
    arguments = parser.parse_args(argv)
    found = annotations.read(arguments.source, arguments.format, arguments.durations)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    annotations.write(arguments.output, found.queries)
    print(f"{arguments.output}: {len(found.queries)} sentences, {len(found.faults)} skipped")
    for reason, number in collections.Counter(fault.reason for fault in found.faults).most_common():
        print(f"  {number} x {reason}")
    listing = arguments.output.with_suffix(".skipped.csv")
    listing.unlink(missing_ok=True)
    if found.faults:
        with open(listing, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("item", "reason", "detail"), *found.faults])
        print(f"  each with its reason in {listing}")


if __name__ == "__main__":
    commands.main(main)

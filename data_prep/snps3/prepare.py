"""Prepare the data of SNP-S3: python -m data_prep.snps3 items --output DIR --split NAME ...

One record per image, video or part of a video; captions, questions and choices lie in a table beside the records.
Captions of videos, 32 frames of each:

    python -m data_prep.snps3 items --output data/webvid --split train --annotations webvid.jsonl --media VIDEOS \\
        --num_frames 32 --max_side 480

Questions, whose answers are looked up in a vocabulary:

    python -m data_prep.snps3 items --output data/msrvtt_qa --split train --annotations train.jsonl --use questions \\
        --media VIDEOS --answers answers.json --num_frames 32

To continue after an interruption, run the same command again: finished shards are kept. `--check DIR` checks raw or
prepared data and writes nothing; `--check DIR --help` lists its options.
"""

import argparse
import collections
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep import shards
from data_prep.commands import Commands, run_command
from data_prep.snps3 import answers as prepare_answers
from data_prep.snps3 import published
from data_prep.snps3 import vocabulary as prepare_vocabulary
from data_prep.snps3 import words as prepare_words
from data_prep.snps3.check import check
from data_prep.snps3.media import FORMATS, MEDIA, Storage, Wanted, check_media, part_records
from data_prep.tables import write_rows
from vlm_jax.data.record_examples import Split, read_features
from vlm_jax.errors import DataError
from vlm_jax.systems.snps3 import annotations, answers
from vlm_jax.systems.snps3.annotations import USES, Fault, Item, Line
from vlm_jax.systems.snps3.data import FEATURES
from vlm_jax.systems.snps3.table import KIND, NAME, make_table, table_path, write_table
from vlm_jax.video.decode import versions


def items(arguments: argparse.Namespace) -> None:
    """Write the shards of a split and its table."""
    storage = make_storage(arguments)
    if not arguments.finalize:
        check_media(arguments.media)
    vocabulary = answers.read(arguments.answers) if arguments.answers else []
    lines, faults = read_annotations(arguments)
    num_answers = count_answers(arguments, lines, vocabulary)
    grouped = annotations.group_parts(lines) if arguments.use == "captions" else annotations.single_lines(lines)
    parts = {item.part: item for item in grouped}
    wanted = [Wanted(n, *part[:1], item.media, *part[1:]) for n, (part, item) in enumerate(parts.items())]
    protocol = {
        "kind": KIND,
        "use": arguments.use,
        "format": storage.format,
        "frames_per_record": storage.num_frames,
        "max_side": storage.max_side,
        "num_answers": num_answers,
        "answers_sha256": answers.fingerprint(vocabulary),
        "frames_from": versions(),
    }
    sources = {MEDIA: arguments.media}
    make = functools.partial(part_records, media=arguments.media, storage=storage)
    tasks = [list(part) for part in wanted]
    features = FEATURES[storage.format]
    job = shards.Job(arguments.output, NAME, arguments.split, features, protocol, tasks, make, sources)
    print_summary(arguments, grouped, len(parts), faults, num_answers)
    shards.run(job, arguments)
    if arguments.finalize or arguments.shard_index is None:
        write_companions(arguments, grouped, list(parts), vocabulary, num_answers)


def make_storage(arguments: argparse.Namespace) -> Storage:
    """Return the settings of records that the options give.

    Raises:
      DataError: For a number out of range.
    """
    for name, least in (("num_frames", 0), ("max_side", 0), ("quality", 1), ("frame_rate", 0), ("num_answers", 0)):
        if getattr(arguments, name) < least:
            raise DataError(f"--{name}: expected at least {least}, found {getattr(arguments, name)}")
    if arguments.format == "video" and (arguments.num_frames or arguments.max_side):
        raise DataError("--format video: files are kept as they are, without --num_frames and --max_side")
    return Storage(arguments.format, arguments.num_frames, arguments.max_side, arguments.quality, arguments.frame_rate)


def read_annotations(arguments: argparse.Namespace) -> tuple[list[Line], list[Fault]]:
    """Return the lines of the annotations, with the parts of transcripts in the place of videos without a caption.

    Raises:
      DataError: For a file that cannot be used.
    """
    lines, faults = annotations.read_lines(arguments.annotations, arguments.use)
    if not arguments.transcripts:
        return lines, faults
    found: list[Line] = []
    for line in lines:
        if line.text.strip() or line.media != "video":
            found.append(line)
            continue
        stem = Path(line.clip_name).stem
        files = (arguments.transcripts / f"{stem}{ending}" for ending in ("", ".json"))
        path = next((path for path in files if path.is_file()), None)
        try:
            spoken = annotations.spoken_parts(line, annotations.read_transcript(path)) if path else []
            reason = ("no speech", str(path)) if path else ("no transcript", str(arguments.transcripts / stem))
        except DataError as error:
            spoken, reason = [], ("transcript cannot be read", str(error))
        found += spoken
        if not spoken:
            faults.append(Fault(f"line {line.number}", *reason))
    if not found:
        raise DataError(f"{arguments.annotations}: no caption, and no speech in {arguments.transcripts}")
    return found, faults


def count_answers(arguments: argparse.Namespace, lines: Sequence[Line], vocabulary: Sequence[str]) -> int:
    """Return the number of answers of open-ended questions, 0 for other uses.

    Raises:
      DataError: For answers in words without a vocabulary, or numbers without a limit.
    """
    if arguments.use != "questions":
        return 0
    if vocabulary:
        return len(vocabulary)
    for line in lines:
        word = next((each for each in line.answers if isinstance(each, str) and not each.isdecimal()), None)
        if word is not None:
            raise DataError(
                f"{arguments.annotations}: line {line.number} has the answer {word!r}; --answers must name a "
                "vocabulary (python -m data_prep.snps3 answers)"
            )
    if not arguments.num_answers:
        largest = max(int(each) for line in lines for each in line.answers)
        raise DataError(
            f"--num_answers: labels are numbers up to {largest}; give their number, the same for all splits"
        )
    return arguments.num_answers


def print_summary(
    arguments: argparse.Namespace, items: Sequence[Item], parts: int, faults: Sequence[Fault], num_answers: int
) -> None:
    """Print what will be prepared, and which lines cannot be used."""
    captions = sum(len(item.lines) for item in items)
    what = {"captions": "captions", "questions": "questions", "choices": "questions with choices"}[arguments.use]
    videos = len({item.part[0] for item in items})
    print(f"{arguments.output}, {arguments.split}: {captions} {what} of {parts} parts of {videos} videos or images")
    if num_answers:
        print(f"  {num_answers} answers")
    empty = sum(not line.text.strip() for item in items for line in item.lines)
    if empty:
        print(f"  empty texts: {empty}")
    for reason, number in collections.Counter(fault.reason for fault in faults).items():
        print(f"  {number} x line skipped: {reason}")
    path = arguments.output / f"{NAME}-{arguments.split}.faults.csv"
    path.unlink(missing_ok=True)
    if faults:
        write_rows(path, Fault._fields, faults)
        print(f"  each with its line in {path}")


def write_companions(
    arguments: argparse.Namespace,
    items: Sequence[Item],
    parts: Sequence[annotations.Part],
    vocabulary: Sequence[str],
    num_answers: int,
) -> None:
    """Write the table of a finished split."""
    features = FEATURES[arguments.format]
    names = ("part", "height", "width")
    found = read_features(Split(arguments.output, arguments.split), {name: features[name] for name in names})
    kept = {
        parts[int(record["part"])]: (number, int(record["height"]), int(record["width"]))
        for number, record in enumerate(found)
    }
    table = make_table(items, kept, vocabulary, num_answers)
    write_table(table_path(arguments.output, arguments.split), table)
    line = f"  {len(table)} items with {len(table.caption_texts)} texts, {len(table.texts)} of them distinct"
    if arguments.use == "questions":
        line += f"; questions without an answer of the vocabulary: {int(np.sum(table.best_labels < 0))}"
    print(line)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that `words`, by default those of the command line, name."""
    run_command(words, __doc__, check, _add_all_commands)


def _add_all_commands(commands: Commands) -> None:
    _add_commands(commands)
    for module in (published, prepare_answers, prepare_vocabulary, prepare_words):
        module.add_commands(commands)


def _add_commands(commands: Commands) -> None:
    parser = commands.add_parser("items", help="records of images and videos, with captions, questions or choices")
    shards.add_arguments(parser, num_shards=64)
    parser.add_argument("--split", required=True, help="name of the split, such as train, val or test")
    parser.add_argument("--annotations", required=True, type=Path, help="JSON lines, see docs/snps3.md")
    parser.add_argument("--use", choices=USES, default="captions", help="kind of lines (default: %(default)s)")
    parser.add_argument(
        "--media", required=True, type=Path, help="folder of files and of folders of frames, or an LMDB"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="frames", help="store JPEGs or whole video files (default: %(default)s)"
    )
    parser.add_argument(
        "--num_frames", type=int, default=0, help="store this many frames, evenly sampled (default: all)"
    )
    parser.add_argument("--max_side", type=int, default=0, help="scale longer sides to this (default: no)")
    parser.add_argument("--quality", type=int, default=95, help="quality of encoded JPEGs (default: %(default)s)")
    parser.add_argument(
        "--frame_rate", type=float, default=0.0, help="frames per second of folders of frames, for parts of them"
    )
    parser.add_argument("--answers", type=Path, help="vocabulary of answers, a JSON list, for questions")
    parser.add_argument("--num_answers", type=int, default=0, help="number of answers, if labels are numbers")
    parser.add_argument("--transcripts", type=Path, help="folder of JSON files of speech, for videos without a caption")
    parser.set_defaults(run=items)

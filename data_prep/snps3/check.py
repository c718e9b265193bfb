"""Check the data of SNP-S3, raw or prepared: python -m data_prep.snps3 --check DIR [options]

Prepared data (DIR holds protocol.json): every record is read and its frames are decoded, and tables are compared with
the records. Raw data: DIR is the folder or LMDB of media; --annotations are read, and every image and video that they
name is decoded. With --vocabulary, the texts are tokenised as well.
"""

import argparse
import collections
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.check import PREPARED, Found, Problem, Reason, check_each, check_parser, check_prepared, run_check
from data_prep.snps3.media import Storage, Wanted, part_records, picture_size
from vlm_jax.data.protocol import PROTOCOL, read_protocol
from vlm_jax.data.record_examples import Split, read_features
from vlm_jax.data.records import Skip
from vlm_jax.errors import DataError, UserError
from vlm_jax.systems.snps3 import annotations
from vlm_jax.systems.snps3.annotations import USES, Line
from vlm_jax.systems.snps3.data import FEATURES
from vlm_jax.systems.snps3.table import KIND, ItemTable, read_table
from vlm_jax.text import vocabulary
from vlm_jax.text.tokenizer import Tokenizer
from vlm_jax.video import decode

UNKNOWN = 0.2
"""Share of unknown tokens from which on a vocabulary does not fit the texts."""

REASONS: dict[str, Reason] = PREPARED | {
    "file": Reason("file cannot be used", "files cannot be used", "repair what is named"),
    "line": Reason("line cannot be used", "lines cannot be used", "it is skipped; repair or drop it"),
    "missing": Reason(
        "image or video is missing",
        "images or videos are missing",
        "its captions are left out; does clip_name have the ending of the file (without a dot, .mp4 is added)?",
    ),
    "damaged": Reason(
        "image or video cannot be decoded", "images or videos cannot be decoded", "it is skipped; download it again"
    ),
    "empty": Reason("text is empty", "texts are empty", "training sees no words there; drop it, or give --transcripts"),
    "unknown": Reason(
        "list of texts has too many unknown tokens",
        "lists of texts have too many unknown tokens",
        "is it the vocabulary of this language, in lower case?",
    ),
    "answers": Reason(
        "split has questions without an answer of the vocabulary",
        "splits have questions without an answer of the vocabulary",
        "training leaves them out, evaluation counts them as wrong; most of them here, so is it the right vocabulary?",
    ),
    "single": Reason(
        "split has one video only",
        "splits have one video only",
        "there is no other one for false captions and negatives",
    ),
    "table": Reason(
        "table does not fit its records", "tables do not fit their records", "run the preparation again with --finalize"
    ),
    "record": Reason(
        "record does not have the frames that it states",
        "records do not have the frames that they state",
        "delete its shard (.tfrecord- and .index-) and run the preparation again",
    ),
}


def check(words: Sequence[str]) -> None:
    """Run `--check DIR` with its options. Exit with status 1 if there are problems."""
    parser = check_parser(__doc__)
    parser.add_argument("--annotations", type=Path, help="JSON lines of raw data")
    parser.add_argument("--use", choices=USES, default="captions", help="kind of lines (default: %(default)s)")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt or sentencepiece .model")
    run_check(parser.parse_args(words), _check, REASONS, may_be_file=True)


def _check(arguments: argparse.Namespace) -> Iterator[Found]:
    tokenizer = vocabulary.load(arguments.vocabulary) if arguments.vocabulary else None
    if (arguments.check / PROTOCOL).exists():
        yield from check_prepared(arguments.check, check_record, arguments.workers)
        yield from _check_tables(arguments.check, tokenizer)
    elif arguments.annotations:
        yield from _check_raw(arguments, tokenizer)
    else:
        raise DataError(f"--check {arguments.check}: no prepared data; raw data need --annotations")


def check_record(record: Mapping[str, Any], protocol: Mapping[str, Any], weight: float) -> Iterator[Problem]:
    """Yield the problems of a prepared image, video or part of one.

    Raises:
      DataError: For frames that cannot be decoded, or another kind of data.
    """
    del weight
    if protocol.get("kind") != KIND:
        raise DataError(f"kind = {protocol.get('kind')!r}, expected {KIND!r}")
    stated, last = (int(record["height"]), int(record["width"])), int(record["first"]) + int(record["count"])
    name = record["clip_name"].decode()
    if protocol["format"] == "frames":
        sizes, length = {picture_size(frame) for frame in record["frames"]}, len(record["frames"])
    else:
        try:
            info = decode.probe(bytes(record["video"]))
            sizes, length = {(info.height, info.width)}, decode.count_frames(bytes(record["video"]))
        except decode.VideoError as error:
            raise DataError(f"{name}: {error}") from None
    if sizes != {stated}:
        yield Problem("record", f"{name}: frames of {sorted(sizes)}, expected {stated}")
    if int(record["count"]) < 1 or last > length:
        yield Problem("record", f"{name}: {length} frames, expected {last}")


def _check_tables(directory: Path, tokenizer: Tokenizer | None) -> Iterator[Found]:
    """Compare the tables of a prepared data set with its records."""
    content = read_protocol(directory)
    form, use = content["protocol"]["format"], content["protocol"]["use"]
    for split in content["splits"]:
        try:
            table = read_table(directory, split)
        except DataError as error:
            yield Found({"tables": 1}, [Problem("table", str(error))])
            continue
        problems = list(_compare(table, directory, split, form))
        if use == "captions" and len(np.unique(table.video_numbers)) < 2:
            problems.append(Problem("single", split))
        outside = int(np.sum(table.best_labels < 0)) if use == "questions" else 0
        if outside * 2 > len(table):
            problems.append(Problem("answers", f"{split}: {outside} of {len(table)}"))
        texts = [*table.texts, *table.option_texts]
        problems += check_texts(f"{directory}, {split}", texts, tokenizer)
        counts = {"tables": 1, "items": len(table), "texts": len(texts)}
        yield Found(counts | ({"questions outside of the vocabulary": outside} if outside else {}), problems)


def _compare(table: ItemTable, directory: Path, split: str, form: str) -> Iterator[Problem]:
    names = ("clip_name", "height", "width")
    try:
        found = list(read_features(Split(directory, split), {name: FEATURES[form][name] for name in names}))
    except DataError:
        return  # the check of the records names it
    if len(found) != len(table.videos):
        yield Problem("table", f"{split}: {len(table.videos)} entries for {len(found)} records")
        return
    for number, record in enumerate(found):
        stated = table.videos[number], tuple(table.sizes[number].tolist())
        shown = record["clip_name"].decode(), (int(record["height"]), int(record["width"]))
        if stated != shown:
            yield Problem("table", f"{split}: record {number} is {shown}, the table has {stated}")
            return


def check_texts(place: str, texts: Sequence[str], tokenizer: Tokenizer | None) -> list[Problem]:
    """Return the problems of texts: empty ones, and a vocabulary that does not know them."""
    problems = [Problem("empty", f"{place}: text {number}") for number, text in enumerate(texts) if not text.strip()]
    if tokenizer is None:
        return problems
    counts = collections.Counter(token for text in texts for token in tokenizer.encode(text))
    unknown, total = counts[tokenizer.unknown_id], sum(counts.values())
    if unknown > UNKNOWN * total:
        problems.append(Problem("unknown", f"{place}: {unknown} of {total} tokens"))
    return problems


def _check_raw(arguments: argparse.Namespace, tokenizer: Tokenizer | None) -> Iterator[Found]:
    try:
        lines, faults = annotations.read_lines(arguments.annotations, arguments.use)
    except UserError as error:
        yield Found({"lines": 0}, [Problem("file", str(error))])
        return
    problems = [Problem("line", f"{fault.item}: {fault.reason} ({fault.detail})") for fault in faults]
    texts = [text for line in lines for text in (line.options or (line.text,))]
    yield Found({"lines": len(lines) + len(faults)}, problems)
    yield Found({"texts": len(texts)}, check_texts(str(arguments.annotations), texts, tokenizer))
    function = functools.partial(check_medium, arguments.check)
    yield from check_each(function, _media(lines), arguments.workers, "checking images and videos")


def _media(lines: Iterable[Line]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((line.clip_name, line.media) for line in lines))


def check_medium(media: Path, named: tuple[str, str]) -> Found:
    """Decode an image or video.

    Args:
      media: Folder or LMDB.
      named: Its name and 'image' or 'video'.
    """
    counted, wanted = {f"{named[1]}s": 1}, Wanted(0, *named, None, None)
    for made in part_records([list(wanted)], media=media, storage=Storage(num_frames=1)):
        if isinstance(made, Skip):
            kind = "missing" if made.reason.endswith("missing") else "damaged"
            return Found(counted, [Problem(kind, f"{made.item}: {made.reason} ({made.detail})")])
    return Found(counted)

"""Checks of raw and prepared data. Nothing is written; problems are printed by reason."""

import argparse
import collections
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data import records
from vlm_jax.data.protocol import read_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.progress import Progress

EXAMPLES = 5
"""Number of problems that are printed for each reason."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of one file or record.

    Attributes:
      reason: Key of its `Reason`.
      detail: File or record, and what was found there.
    """

    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Reason:
    """Description of a kind of problem.

    Attributes:
      one: Words printed after the number 1, such as 'video is missing'.
      many: Words printed after any other number.
      advice: Remedy, printed behind the description.
    """

    one: str
    many: str
    advice: str


@dataclasses.dataclass(frozen=True)
class Found:
    """Result of checking a part of the data.

    Attributes:
      counts: Number of things that were checked, by their name in the plural.
      problems: Problems that were found.
    """

    counts: Mapping[str, int]
    problems: Sequence[Problem] = ()


CheckRecord = Callable[[Mapping[str, Any], Mapping[str, Any], float], Iterable[Problem]]
"""Function from a record by feature, the protocol, and the record's weight in the index to the record's problems.

Encoded frames of the record are not decoded yet. A problem's detail need not name the record. A `DataError` or an error
of TensorFlow means that frames cannot be decoded."""

PREPARED = {
    "shard": Reason(
        "shard is missing, damaged or does not fit its index",
        "shards are missing, damaged or do not fit their index",
        "delete it (.tfrecord- and .index-) and run the preparation again; it makes what is missing",
    ),
    "frames": Reason(
        "record has frames that cannot be decoded",
        "records have frames that cannot be decoded",
        "delete its shard (.tfrecord- and .index-) and run the preparation again",
    ),
}
"""Reasons that apply to every prepared data set."""


def check_each(function: Callable[[Any], Found], tasks: Sequence[Any], workers: int, label: str) -> Iterator[Found]:
    """Yield the result of a function for every task, in order, with a progress bar.

    The function and the tasks are picklable.
    """
    with Progress(label, len(tasks)) as progress:
        if workers > 1 and len(tasks) > 1:
            with ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn")) as pool:
                for found in pool.map(function, tasks, chunksize=max(1, min(16, len(tasks) // (4 * workers)))):
                    progress.advance()
                    yield found
        else:
            for task in tasks:
                found = function(task)
                progress.advance()
                yield found


def report(name: str, found: Iterable[Found], reasons: Mapping[str, Reason]) -> bool:
    """Print what was checked and the first problems of each reason. Return true if there are no problems."""
    counts: collections.Counter[str] = collections.Counter()
    numbers: collections.Counter[str] = collections.Counter()
    examples: dict[str, list[str]] = collections.defaultdict(list)
    for part in found:
        counts.update(part.counts)
        for problem in part.problems:
            numbers[problem.reason] += 1
            if len(examples[problem.reason]) < EXAMPLES:
                examples[problem.reason].append(problem.detail)
    counts["problems"] = sum(numbers.values())
    looked = [f"{number or 'no'} {what.removesuffix('s') if number == 1 else what}" for what, number in counts.items()]
    print(f"{name}: {', '.join(looked[:-1]) or 'nothing'} checked, {looked[-1]}")
    for key, number in numbers.most_common():
        reason = reasons[key]
        print(f"{number} {reason.one if number == 1 else reason.many}: {reason.advice}")
        for detail in examples[key]:
            print(f"  {detail}")
        if number > EXAMPLES:
            print(f"  and {number - EXAMPLES} more")
    return not numbers


def check_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every check has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", required=True, type=Path, metavar="DIR", help="folder of the data")
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")
    return parser


def run_check(
    arguments: argparse.Namespace,
    check: Callable[[argparse.Namespace], Iterable[Found]],
    reasons: Mapping[str, Reason],
    *,
    may_be_file: bool = False,
) -> None:
    """Check the data that `--check` names and print a report. Exit with status 1 if there are problems.

    Args:
      arguments: Parsed options.
      check: Function that checks the data.
      reasons: Reasons of its problems.
      may_be_file: If true, the data may be a file, otherwise only a folder.

    Raises:
      DataError: for data that do not exist.
    """
    if not (os.path.exists if may_be_file else os.path.isdir)(arguments.check):
        raise DataError(f"--check: {arguments.check}: no such folder")
    if not report(str(arguments.check), check(arguments), reasons):
        raise SystemExit(1)


def check_prepared(directory: Path, check_record: CheckRecord, workers: int) -> Iterator[Found]:
    """Check the checksum, index and content of every record of every split.

    Raises:
      DataError: for a folder that holds no data set.
    """
    content = read_protocol(directory)
    tasks, broken = [], []
    for name in content["splits"]:
        split = Split(directory, name)
        for number, path in enumerate(split.paths):
            try:
                index = split.index(number)
            except DataError as error:
                broken.append(Problem("shard", str(error)))
                continue
            tasks.append((path, index, split.protocol, check_record))
    yield Found({"splits": len(content["splits"])}, broken)
    yield from check_each(_check_shard, tasks, workers, f"checking {content['name']}, shards")


def _check_shard(task: tuple[Path, Any, Mapping[str, Any], CheckRecord]) -> Found:
    path, index, protocol, check_record = task
    features = tfds.features.FeaturesDict.from_config(str(path.parent))
    undecoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(getattr(feature, "feature", feature), tfds.features.Image)
    }
    problems, offset, count = [], 0, 0
    try:
        for count, serialised in enumerate(tf.data.TFRecordDataset(str(path)), start=1):
            if count > len(index) or offset != index["offset"][count - 1]:
                problems.append(Problem("shard", f"{path}: the record at byte {offset} is not in the index"))
                break
            place = f"{path}: record at byte {offset}"
            try:
                record = features.deserialize_example(serialised, decoders=undecoded)
                record = {name: value.numpy() for name, value in record.items()}
                weight = float(index["weight"][count - 1])
                problems += [
                    Problem(problem.reason, f"{place}: {problem.detail}")
                    for problem in check_record(record, protocol, weight)
                ]
            except (tf.errors.InvalidArgumentError, DataError) as error:
                problems.append(Problem("frames", f"{place}: {records.plain(error)}"))
            offset += len(serialised.numpy()) + 16
        else:
            if count < len(index):
                problems.append(Problem("shard", f"{path}: {count} records, its index has {len(index)}"))
    except tf.errors.NotFoundError:
        problems.append(Problem("shard", f"{path}: no such file"))
    except tf.errors.DataLossError:
        problems.append(Problem("shard", f"{path}: damaged after byte {offset}"))
    return Found({"shards": 1, "records": count}, problems)

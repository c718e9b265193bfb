"""Preparation of shards by one process, several workers, or the jobs of a cluster.

A shard is the result of one call of a pure function, byte for byte the same every time. Finished shards are kept, so
running the same command again resumes a preparation that was killed. A shard that skipped an item because of a missing
or unreadable file is made again once that file has changed.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_prep import beam
from vlm_jax.data.records import Record, Skip, finalize, has_changed_files, index_path, shard_path, write_shard
from vlm_jax.errors import DataError
from vlm_jax.files import write_json
from vlm_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Job:
    """Description of the shards of one split.

    Attributes:
      directory: Folder of the data set.
      name: Name of the data set.
      split: Name of the split.
      features: Features of a record.
      protocol: Settings that the records are made with; checked when the data are read.
      items: All items, in order, of types that JSON has. Every shard takes a range of consecutive items.
      make: Function from items to records, and to skips for items that give none; pure and picklable.
      sources: Folders and files that the items are read from, by the names that `Skip.files` uses.
    """

    directory: Path
    name: str
    split: str
    features: tfds.features.FeaturesDict
    protocol: Mapping[str, Any]
    items: Sequence[Any]
    make: Callable[[Sequence[Any]], Iterable[Record | Skip]]
    sources: Mapping[str, Path] = dataclasses.field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser, num_shards: int) -> None:
    """Add the options that every preparation has."""
    parser.add_argument("--output", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--num_shards", type=int, default=num_shards, help="number of shards (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")
    parser.add_argument(
        "--shard_index", type=int, help="make only this shard, for instance the number of a cluster job"
    )
    parser.add_argument(
        "--shard_step", type=int, default=0, help="N: with --shard_index I, also make shards I + N, I + 2 N, ..."
    )
    parser.add_argument(
        "--beam_pipeline_options",
        help="make the shards with Apache Beam, for instance runner=DirectRunner,direct_num_workers=4",
    )
    parser.add_argument("--finalize", action="store_true", help="make no shards; check them and write the metadata")


def run(job: Job, arguments: argparse.Namespace) -> None:
    """Make the missing shards, then write the metadata once all shards exist.

    Raises:
      DataError: for options out of range, for shards that are missing when finalizing, or for a folder that was begun
        with other items or settings.
    """
    count = arguments.num_shards
    if count < 1 or not job.items:
        raise DataError(f"{job.name}: {len(job.items)} items for {count} shards; expected at least one of each")
    count = min(count, len(job.items))
    index = arguments.shard_index
    if index is not None and not 0 <= index < arguments.num_shards:
        raise DataError(f"--shard_index: {index} is not one of 0 to {arguments.num_shards - 1}")
    if arguments.shard_step and (index is None or not index < arguments.shard_step) and not arguments.finalize:
        raise DataError(f"--shard_step: expected more than --shard_index, found {arguments.shard_step} and {index}")
    _check_begun(job, count)
    if not arguments.finalize:
        wanted = range(index or 0, count, arguments.shard_step or (1 if index is None else count))
        _make(job, count, wanted, arguments.workers, arguments.beam_pipeline_options)
    if arguments.finalize or index is None:
        summary = finalize(job.directory, job.name, job.split, count, job.features, job.protocol)
        skipped = sum(summary["skipped"].values())
        print(
            f"{job.directory}: {len(job.items)} items, {summary['groups']} kept as {summary['records']} records "
            f"({summary['bytes'] / 1e6:.1f} MB), {skipped} skipped"
        )
        for reason, number in sorted(summary["skipped"].items()):
            print(f"  {number} x {reason}")
        for reason, number in sorted(summary["remarked"].items()):
            print(f"  {number} kept, but {reason}")
        if skipped or summary["remarked"]:
            print(f"  each with its reason in {job.directory / 'skipped.csv'}")


def _make(job: Job, count: int, wanted: Sequence[int], workers: int, beam_options: str | None) -> None:
    tasks, again = [], 0
    for index in wanted:
        path = shard_path(job.directory, job.name, job.split, index, count)
        begin, end = (len(job.items) * number // count for number in (index, index + 1))
        if index_path(path).exists() and has_changed_files(path, job.sources):
            index_path(path).unlink()
            again += 1
        if not index_path(path).exists():
            tasks.append((path, job.features, job.make, job.items[begin:end], job.sources))
    if again:
        print(f"{job.directory}: {again} finished shards are made again, files that they lacked have changed")
    if beam_options is not None:
        beam.make_all(_make_shard, tasks, beam_options)
        return
    with Progress(f"{job.name}-{job.split} shards", len(wanted), start=len(wanted) - len(tasks)) as progress:
        if workers > 1 and len(tasks) > 1:
            context = multiprocessing.get_context("spawn")
            try:
                with ProcessPoolExecutor(min(workers, len(tasks)), context, _end_with_parent) as pool:
                    for _ in pool.map(_make_shard, tasks):
                        progress.advance()
            except BrokenProcessPool:
                raise DataError(
                    f"{job.directory}: a worker process was killed (out of memory?); run the same command again, "
                    f"with fewer than --workers {workers}"
                ) from None
        else:
            for task in tasks:
                _make_shard(task)
                progress.advance()


def _end_with_parent() -> None:
    """Make a worker exit when the command is killed; otherwise it would wait for work forever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check_begun(job: Job, count: int) -> None:
    """Check that the folder was begun with the same items and settings, which are stored in it.

    Raises:
      DataError: for other items or settings, whose shards must not be mixed with these, or for a damaged file.
    """
    path = job.directory / f"{job.name}-{job.split}.begun.json"
    digest = hashlib.sha256(json.dumps(job.items, sort_keys=True).encode()).hexdigest()
    wanted = {**job.protocol, "num_shards": count, "items": len(job.items), "items_sha256": digest}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise DataError(f"{path}: damaged, expected a JSON object; delete the folder to begin again") from None
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DataError(
                f"{path}: begun with {key} = {found.get(key)!r}, now it is {value!r}; choose another --output, "
                "or delete the folder to begin again"
            )


def _make_shard(task: tuple[Path, tfds.features.FeaturesDict, Callable, Sequence[Any], Mapping[str, Path]]) -> None:
    path, features, make, items, sources = task
    write_shard(path, features, make(items), sources)

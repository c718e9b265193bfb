"""Prepare GroundNLQ's data: python -m data_prep.groundnlq COMMAND --output DIR ...

    features     an LMDB, or a folder of .pt, .npy or .npz files, one per clip -> a set of clips
    queries      nlq_train.json and the like, or annotations of another form, with features of their words -> a split
                 of a set of questions
    narrations   egoclip.csv and annotation files, with features of the words -> a set of narrations as questions

Ego4D's natural-language queries are prepared by

    features   --features VIDEO --output data/ego4d/features
    queries    --annotations nlq_train.json --text TEXT --split train --output data/ego4d/queries
    queries    --annotations nlq_val.json --text TEXT --split validation --output data/ego4d/queries
    queries    --annotations nlq_test_unannotated.json --text TEXT --split test --output data/ego4d/queries
    narrations --egoclip egoclip.csv --annotations nlq_train.json moments_train.json vq_train.json --text TEXT
               --output data/ego4d/narrations

To continue after an interruption, run the same command again: finished shards are kept. Prepared and raw data are
checked by

    python -m data_prep.groundnlq --check DIR [--features DIR]
    python -m data_prep.groundnlq --check VIDEO [--annotations nlq_train.json [--text TEXT]]
"""

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import shards
from data_prep.commands import Commands, run_command
from data_prep.groundnlq import annotations
from data_prep.groundnlq.check import check
from data_prep.groundnlq.stores import STORE, TEXT_KEYS, VIDEO_KEYS, Store, open_store, read_rows, words
from vlm_jax.annotations import FORMS
from vlm_jax.data import feature_store as clips
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.features import FeatureError
from vlm_jax.systems.groundnlq import data


def features(arguments: argparse.Namespace) -> None:
    """Write a set of clips, one record per clip."""
    store = open_store(arguments.features, VIDEO_KEYS)
    names = list(store.names())
    if not names:
        raise DataError(f"{arguments.features}: no features there; expected an LMDB, or .pt, .npy or .npz files")
    made, given = {"feature_dim": 2304, "feature_stride": 16.043, "fps": 30.0}, vars(arguments)
    if store.settings:
        made = dict(zip(made, (store.settings.dim, float(store.settings.stride), store.settings.fps), strict=True))
    made |= {name: given[name] for name in made if given[name] is not None}
    make = functools.partial(clip_records, path=arguments.features, dim=made["feature_dim"], dtype=arguments.dtype)
    protocol = {"kind": clips.KIND, "dtype": arguments.dtype, **stated(store, "video"), **made}
    sources = {STORE: arguments.features}
    job = shards.Job(
        arguments.output, "features", clips.CLIPS, clips.clip_features(arguments.dtype), protocol, names, make, sources
    )
    shards.run(job, arguments)


def queries(arguments: argparse.Namespace) -> None:
    """Write a split of a set of questions, one record per question."""
    records = annotations.read_questions(arguments.annotations, arguments.format)
    _questions(arguments, "queries", arguments.split, records)


def narrations(arguments: argparse.Namespace) -> None:
    """Write a set of narrations used as questions, one record per narration."""
    by_video = annotations.read_egoclip(arguments.egoclip)
    files = [annotations.read_json(path) for path in arguments.annotations]
    try:
        records = list(annotations.narrations(by_video, files))
    except (KeyError, TypeError) as error:
        names = ", ".join(str(path) for path in arguments.annotations)
        raise DataError(f"{names}: not annotation files of Ego4D ({type(error).__name__}: {error})") from None
    _questions(arguments, "narrations", arguments.split, records)


def _questions(arguments: argparse.Namespace, name: str, split: str, records: Sequence[Mapping[str, Any]]) -> None:
    store = open_store(arguments.text, TEXT_KEYS)
    dim = arguments.dim or (store.settings.dim if store.settings else 512)
    make = functools.partial(query_records, path=arguments.text, dim=dim, dtype=arguments.dtype)
    protocol = {
        "kind": data.KIND,
        "text_dim": dim,
        "dtype": arguments.dtype,
        **stated(store, "text"),
    }
    found, form = annotations.items(records), data.query_features(arguments.dtype)
    sources = {STORE: arguments.text}
    shards.run(shards.Job(arguments.output, name, split, form, protocol, found, make, sources), arguments)
    if arguments.jsonl:
        arguments.jsonl.write_text(annotations.to_lines(records), encoding="utf-8")


def stated(store: Store, kind: str) -> dict[str, Any]:
    """Return a protocol's entries on the origin of features: their source, and their settings where known."""
    if store.settings is None:
        return {f"{kind}_source": ""}
    return {f"{kind}_source": store.settings.source, f"{kind}_features": dataclasses.asdict(store.settings)}


def clip_records(names: Sequence[str], *, path: Path, dim: int, dtype: str) -> Iterator[Record | Skip]:
    """Yield a record for every clip, or the reason why it gives none.

    Args:
      names: Names of the clips.
      path: Path of the features.
      dim: Width of the features.
      dtype: Type of the stored features.
    """
    store, group = open_store(path, VIDEO_KEYS), 0
    for name in names:
        array = read_rows(store, name, dim, dtype)
        if isinstance(array, Skip):
            yield array
            continue
        try:
            duration = np.float64(store.duration(name))
        except FeatureError as error:
            yield Skip(name, "unreadable", str(error))
            continue
        yield Record({"clip": name, "features": array, "duration": duration}, group)
        group += 1


def query_records(items: Sequence[Mapping[str, Any]], *, path: Path, dim: int, dtype: str) -> Iterator[Record | Skip]:
    """Yield a record for every question, with the features of its words, or the reason why it gives none.

    Args:
      items: Items of `annotations.items`.
      path: Path of the features of words.
      dim: Width of the features.
      dtype: Type of the stored features.
    """
    store, group = open_store(path, TEXT_KEYS), 0
    for item in items:
        if "fault" in item:
            yield Skip(item["qid"], *item["fault"])
            continue
        tokens = read_rows(store, item["qid"], dim, dtype, words)
        if isinstance(tokens, Skip):
            yield tokens
            continue
        spans = np.array(item["spans"], np.float64).reshape(-1, 2)
        yield Record({**item, "duration": np.float64(item["duration"]), "spans": spans, "tokens": tokens}, group)
        group += 1


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that `words`, by default those of the command line, name."""
    run_command(words, __doc__, check, _add_commands)


def _add_commands(commands: Commands) -> None:
    made = commands.add_parser("features", help="a set of clips")
    shards.add_arguments(made, num_shards=64)
    made.add_argument("--features", required=True, type=Path, help="LMDB, or folder of .pt, .npy or .npz files")
    made.add_argument("--dim", dest="feature_dim", type=int, help="width of the features (default: 2304, or as stated)")
    made.add_argument("--feature_stride", type=float, help="frames per position (default: 16.043, or as stated)")
    made.add_argument("--fps", type=float, help="frames per second (default: 30, or as stated by the features)")
    _add_dtype(made)
    made.set_defaults(run=features)
    made = commands.add_parser("queries", help="a split of a set of questions")
    _add_questions(made, num_shards=8)
    made.add_argument("--annotations", required=True, type=Path, help="file of questions")
    made.add_argument(
        "--format",
        choices=(annotations.EGO4D, *FORMS),
        default=annotations.EGO4D,
        help="form of that file; ego4d: official .json, or .jsonl of the reference's scripts (default: %(default)s)",
    )
    made.add_argument("--split", required=True, choices=("train", "validation", "test"))
    made.set_defaults(run=queries)
    made = commands.add_parser("narrations", help="a set of narrations as questions")
    _add_questions(made, num_shards=64)
    made.add_argument("--egoclip", required=True, type=Path, help="egoclip.csv")
    made.add_argument(
        "--annotations", required=True, type=Path, nargs="+", help="nlq_train.json moments_train.json vq_train.json"
    )
    made.set_defaults(run=narrations, split="train")


def _add_questions(parser: argparse.ArgumentParser, num_shards: int) -> None:
    shards.add_arguments(parser, num_shards)
    parser.add_argument("--text", required=True, type=Path, help="features of words: LMDB, folder or .npz file")
    parser.add_argument("--dim", type=int, help="width of a word's features (default: 512, or as stated by them)")
    parser.add_argument("--jsonl", type=Path, help="also write the questions in the reference's form")
    _add_dtype(parser)


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=clips.DTYPES, default="float32", help="type of the stored features")

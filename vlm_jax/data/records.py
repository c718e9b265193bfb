"""Data sets on disk: TFRecord shards that TFDS reads, each with an index.

    DIR/NAME-SPLIT.tfrecord-00003-of-00128   examples, serialised by TFDS features
    DIR/NAME-SPLIT.index-00003-of-00128.npy  offset, group and weight of every record
    DIR/features.json, dataset_info.json     TFDS metadata: `tfds.builder_from_directory(DIR)`
    DIR/protocol.json                        settings of the preparation, and the groups of every shard
    DIR/NAME-SPLIT.begun.json                settings that the preparation began with, so that no other one resumes it

A group is the unit that an epoch counts (a video). Its records are alternatives, drawn by weight.
"""

import collections
import csv
import dataclasses
import io
import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.array_files import load_array
from vlm_jax.data.protocol import PROTOCOL, read_protocol
from vlm_jax.errors import DataError
from vlm_jax.files import replacing, write_atomically, write_json

# TensorFlow only reads and decodes; the GPU is left to the model.
tf.config.set_visible_devices([], "GPU")
tf.get_logger().setLevel(logging.ERROR)
logging.getLogger("absl").addFilter(lambda record: "is deprecated. Please change your code" not in record.getMessage())

SKIPPED_COLUMNS = ("item", "reason", "detail", "kept")
INDEX = np.dtype([("offset", "<i8"), ("group", "<i4"), ("weight", "<f8")])


@dataclasses.dataclass(frozen=True)
class Record:
    """Example to be written.

    Attributes:
      example: Values by feature name.
      group: Number of its group within the shard, not decreasing.
      weight: Relative probability among the records of its group.
    """

    example: Mapping[str, Any]
    group: int
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Skip:
    """Item that gives no record, or whose record has a remark, and the reason.

    Attributes:
      item: Name of the item.
      reason: Reason in a few words, the same for all items with this problem.
      detail: Description of what was found.
      kept: If true, the item gives its record nevertheless.
      files: Files that may solve the problem, each as the name of a source and the path below it, such as
        `videos/a.mp4`. If one of them appears or changes, the same preparation makes the shard again.
    """

    item: str
    reason: str
    detail: str = ""
    kept: bool = False
    files: tuple[str, ...] = ()


def shard_path(directory: Path, name: str, split: str, index: int, count: int) -> Path:
    """Return the path of a shard's records."""
    return directory / f"{name}-{split}.tfrecord-{index:05d}-of-{count:05d}"


def index_path(records: Path) -> Path:
    """Return the path of the index that belongs to a shard's records."""
    return records.with_name(records.name.replace(".tfrecord-", ".index-") + ".npy")


def skipped_path(records: Path) -> Path:
    """Return the path of the list of items that a shard leaves out."""
    return records.with_name(records.name.replace(".tfrecord-", ".skipped-") + ".csv")


def write_shard(
    path: Path,
    features: tfds.features.FeaturesDict,
    records: Iterable[Record | Skip],
    sources: Mapping[str, Path] | None = None,
) -> None:
    """Write one shard, its list of skipped items and its index, each under a temporary name that is then changed.

    The index is written last: if it exists, the shard is complete.

    Args:
      path: File of the records.
      features: TFDS features that serialise an example.
      records: Records to write, and items to list as skipped.
      sources: Folders of the sources of `Skip.files`, by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, skipped, offset = [], [], 0
    with replacing(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        for record in records:
            if isinstance(record, Skip):
                states = {file: _file_state(file, sources or {}) for file in record.files}
                skipped.append((*_cells(record), json.dumps(states)))
                continue
            serialised = features.serialize_example(record.example)
            # TFDS writes the fields in no fixed order; a shard must have the same bytes every time.
            serialised = tf.train.Example.FromString(serialised).SerializeToString(deterministic=True)
            writer.write(serialised)
            rows.append((offset, record.group, record.weight))
            # A TFRecord frames its payload with a length, and a checksum on each side: 16 bytes.
            offset += len(serialised) + 16
    write_atomically(skipped_path(path), _csv((*SKIPPED_COLUMNS, "files"), skipped))
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows, INDEX))
    write_atomically(index_path(path), buffer.getvalue())


def read_skipped(records: Path) -> list[Skip]:
    """Return the items that a finished shard left out or has a remark on."""
    return [
        Skip(row["item"], row["reason"], row["detail"], row.get("kept") == "yes", tuple(_states(row)))
        for row in _skipped_rows(records)
    ]


def has_changed_files(records: Path, sources: Mapping[str, Path]) -> bool:
    """Return whether a file behind a skipped item of a finished shard has appeared, changed or gone since."""
    return any(
        _file_state(file, sources) != state for row in _skipped_rows(records) for file, state in _states(row).items()
    )


def _skipped_rows(records: Path) -> Iterable[dict[str, str]]:
    return csv.DictReader(io.StringIO(skipped_path(records).read_text(encoding="utf-8")))


def _states(row: Mapping[str, str]) -> dict[str, list[int] | None]:
    return json.loads(row.get("files") or "{}")


def _file_state(file: str, sources: Mapping[str, Path]) -> list[int] | None:
    """Return size (bytes) and time of change (ns) of a file of a source; None if there is no such file."""
    source, _, name = file.partition("/")
    try:
        status = (sources[source] / name).stat()
    except (KeyError, OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return [status.st_size, status.st_mtime_ns]


def _cells(skip: Skip) -> tuple[str, ...]:
    return skip.item, skip.reason, skip.detail, "yes" if skip.kept else "no"


def _csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode()


def read_index(records: Path) -> np.ndarray:
    """Read the index of a shard, which has one row of type `INDEX` per record.

    Raises:
      DataError: if it is missing or damaged.
    """
    path = index_path(records)
    try:
        index = load_array(path, INDEX)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; its shard was not finished, run the preparation again") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); delete the shard and run the preparation again") from None
    weights = index["weight"]
    faults = {
        "a weight that is negative or no number": not (np.isfinite(weights) & (weights >= 0)).all(),
        "an offset that does not ascend": (np.diff(index["offset"], prepend=-1) <= 0).any(),
        "a group that does not ascend": (np.diff(index["group"], prepend=0) < 0).any(),
    }
    if fault := next((fault for fault, found in faults.items() if found), None):
        raise DataError(f"{path}: damaged, it has {fault}; delete the shard and run the preparation again")
    return index


def finalize(
    directory: Path,
    name: str,
    split: str,
    count: int,
    features: tfds.features.FeaturesDict,
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """Check that every shard of a split exists, then write the metadata and `skipped.csv`, which lists all splits.

    Args:
      directory: Folder of the data set.
      name: Name of the data set.
      split: Name of the split.
      count: Number of shards.
      features: TFDS features of the records.
      protocol: Statements of the data set by key.

    Returns:
      Numbers of `records`, `groups` and `bytes`; `skipped`, the number of items left out by reason; and `remarked`, the
      number of items kept with a remark by reason.

    Raises:
      DataError: if shards are missing (it lists them), the split has no record, or the folder belongs to another data
        set.
    """
    paths = [shard_path(directory, name, split, index, count) for index in range(count)]
    missing = [number for number, path in enumerate(paths) if not (path.exists() and index_path(path).exists())]
    if missing:
        raise DataError(
            f"{directory}: {len(missing)} of the {count} shards of {name}-{split} are not made yet: {_ranges(missing)}"
        )
    indices = [read_index(path) for path in paths]
    records = [len(index) for index in indices]
    groups = [len(np.unique(index["group"])) for index in indices]
    size = sum(path.stat().st_size for path in paths)
    new = {"name": name, "protocol": dict(protocol)}
    known = read_protocol(directory) if (directory / PROTOCOL).exists() else {**new, "splits": {}}
    found, wanted = ({"name": content["name"], **content["protocol"]} for content in (known, new))
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        if found.get(key) != wanted.get(key):
            raise DataError(f"{directory / PROTOCOL}: its {key} is {found.get(key)}, expected {wanted.get(key)}")
    counts = {key: value["shards"] for key, value in known["splits"].items()} | {split: count}
    skipped = {
        key: [skip for n in range(shards) for skip in read_skipped(shard_path(directory, name, key, n, shards))]
        for key, shards in counts.items()
    }
    listed = [(key, *_cells(skip)) for key, skips in skipped.items() for skip in skips]
    write_atomically(directory / "skipped.csv", _csv(("split", *SKIPPED_COLUMNS), listed))
    if not sum(records):
        raise DataError(f"{directory}: the split {split!r} holds no record; see skipped.csv for the reasons")
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(directory), dataset_name=name, split=split, filetype_suffix="tfrecord"
    )
    splits = {**known["splits"], split: {"shards": count, "records": records, "groups": groups, "bytes": size}}
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name=key,
                shard_lengths=value["records"],
                num_bytes=value["bytes"],
                filename_template=template.replace(split=key),
            )
            for key, value in splits.items()
        ],
    )
    write_json(directory / PROTOCOL, {**new, "splits": splits})
    for left in directory.glob(f"{name}-{split}.*.tmp"):
        left.unlink(missing_ok=True)
    reasons = {
        kind: dict(collections.Counter(skip.reason for skip in skipped[split] if skip.kept == kept))
        for kind, kept in (("skipped", False), ("remarked", True))
    }
    return {"records": sum(records), "groups": sum(groups), "bytes": size, **reasons}


def _ranges(numbers: list[int], most: int = 30) -> str:
    """Format ascending numbers as '0,3-6,9', a form that job arrays accept."""
    edges = [numbers[0], *(n for a, b in itertools.pairwise(numbers) if b > a + 1 for n in (a, b)), numbers[-1]]
    pairs = list(zip(edges[::2], edges[1::2], strict=True))
    more = f" and {len(pairs) - most} more stretches" if pairs[most:] else ""
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in pairs[:most]) + more


def read_record(path: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Read the serialised record at an offset (bytes) of a TFRecord file; its checksums are verified."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path], compression_type="", buffer_size=tf.constant(1 << 18, tf.int64), byte_offsets=[offset]
    )
    dataset = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
    return dataset.take(1).get_single_element()


def plain(error: Exception) -> str:
    """Return the first line of an error's text, without TensorFlow's notes on the graph node that raised it."""
    return re.sub(r"\{\{.*?\}\} ?| ?\[Op:\w+\]", "", str(error).strip()).splitlines()[0].strip()


def find_damage(places: Iterable[tuple[str, int]]) -> str | None:
    """Return one line that names the first record that cannot be read; None if all can.

    Args:
      places: Path and offset (bytes) of every record.
    """
    for path, offset in places:
        try:
            read_record(tf.constant(path), tf.constant(offset, tf.int64))
        except tf.errors.NotFoundError:
            return f"{path}: no such file"
        except tf.errors.OpError:
            return f"{path}: no undamaged record at byte {offset}; delete the shard and run the preparation again"
    return None

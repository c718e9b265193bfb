"""Evaluation outputs collected in memory, or as arrays on disk if they are larger than memory (feature banks).

Items with varying numbers of rows, such as boxes, are packed: the arrays `[M, ...]` hold the rows of item 0, then those
of item 1 and so on, and one more array `[N]` holds the number of rows of every item (`task.Evaluator.counts`).
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_jax.errors import DataError
from vlm_jax.files import replacing, write_json
from vlm_jax.types import Outputs

INDEX = "index"
"""Name of the numbers of the items in a part, beside its outputs."""
STAMP = "evaluation.json"
"""Name of the file beside parts and arrays that states what was evaluated and how."""


Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""(name, shape, type) -> the array that holds one output of all items."""


class Rows:
    """Outputs of items that come in any order, each exactly once.

    Args:
      total: Number of items.
      allocate: Function that makes the arrays; `np.empty` if None.
      counts: Number of rows of every item, int `[total]`, if outputs are packed; else each item has one row.
    """

    def __init__(self, total: int, allocate: Allocate | None = None, counts: np.ndarray | None = None) -> None:
        self.total, self.seen = total, np.zeros(total, np.int32)
        self.allocate = allocate or (lambda name, shape, dtype: np.empty(shape, dtype))
        self.starts = np.concatenate([[0], np.cumsum(np.ones(total, np.int64) if counts is None else counts)])
        self.arrays: dict[str, np.ndarray] = {}

    def put(self, index: np.ndarray, outputs: Outputs) -> None:
        """Store the outputs of the items `index` `[n]`: `[n, ...]`, or their packed rows in the order of `index`.

        Raises:
          DataError: if an item does not exist, or an output's shape or type changes between batches.
        """
        if len(index) and not (index.min() >= 0 and index.max() < self.total):
            wrong = int(index.max()) if index.max() >= self.total else int(index.min())
            raise DataError(f"evaluation: found item {wrong}, expected items 0 to {self.total - 1}")
        np.add.at(self.seen, index, 1)
        if not self.arrays:
            self.arrays = {
                name: self.allocate(name, (int(self.starts[-1]), *value.shape[1:]), value.dtype)
                for name, value in outputs.items()
            }
        firsts, counts = self.starts[index], self.starts[index + 1] - self.starts[index]
        rows = np.repeat(firsts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        for name, array in self.arrays.items():
            found = outputs[name]
            if (found.shape[1:], found.dtype) != (array.shape[1:], array.dtype):
                raise DataError(
                    f"evaluation: output {name} is {found.dtype} {list(found.shape[1:])} in one batch and "
                    f"{array.dtype} {list(array.shape[1:])} in another"
                )
            array[rows] = found

    def finish(self) -> dict[str, np.ndarray]:
        """Return the arrays, rows by index.

        Raises:
          DataError: if an item is missing or came twice.
        """
        for problem, wrong in (("is missing", self.seen == 0), ("came more than once", self.seen > 1)):
            items = np.flatnonzero(wrong)
            if len(items):
                raise DataError(
                    f"evaluation: item {items[0]} of {self.total} {problem}"
                    + (f" (and {len(items) - 1} more)" if len(items) > 1 else "")
                )
        return self.arrays


def pack(outputs: Outputs, counts: str) -> Outputs:
    """Return the outputs of a batch without padding: all but `counts` become `[m, ...]`, m the sum of the counts.

    Args:
      outputs: Outputs of n items, each `[n, N, ...]`, of whose N rows the first ones are real; `counts` is int `[n]`.
      counts: Name of the output that holds the number of real rows; empty if nothing is to be packed.

    Raises:
      DataError: if an item has more rows than there are.
    """
    if not counts:
        return outputs
    numbers, packed = np.asarray(outputs[counts]), {}
    for name, value in outputs.items():
        if name != counts and numbers.max(initial=0) > value.shape[1]:
            raise DataError(
                f"evaluation: {counts} is {numbers.max()}, but {name} has {value.shape[1]} rows for an item"
            )
        packed[name] = numbers if name == counts else value[np.arange(value.shape[1]) < numbers[:, None]]
    return packed


def merge(
    batches: Callable[[], Iterable[tuple[np.ndarray, Outputs]]],
    total: int,
    counts: str = "",
    allocate: Allocate | None = None,
) -> dict[str, np.ndarray]:
    """Return the outputs of all items by index: `[total, ...]`, or packed rows `[M, ...]` and the counts `[total]`.

    Args:
      batches: Function that gives all batches, (index `[n]`, outputs) each; with `counts`, it is called twice.
      total: Number of items.
      counts: Name of the output with the numbers of rows, if outputs are packed.
      allocate: Function that makes the arrays, of all outputs but `counts`; `np.empty` if None.

    Raises:
      DataError: in the cases of `Rows`.
    """
    merged = {}
    if counts:
        numbers = Rows(total)
        for index, outputs in batches():
            numbers.put(index, {counts: outputs[counts]})
        merged = numbers.finish()
    rows = Rows(total, allocate, merged.get(counts))
    for index, outputs in batches():
        rows.put(index, {name: outputs[name] for name in outputs if name not in (counts, INDEX)})
    return merged | rows.finish()


class ArraySink:
    """Sink that fills a folder with one `NAME.npy` per output, rows by index; `np.load(path, mmap_mode="r")` reads it.

    Until all items are written, the parts of every batch and process lie in `FOLDER.parts/`. Several processes need a
    shared file system. Types that `.npy` does not know, such as bfloat16, become float32.

    Args:
      folder: Folder of the arrays; its content is replaced when the evaluation is complete.
      fingerprint: JSON values that the arrays depend on, in addition to variables, batch size and protocol.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any] | None = None) -> None:
        self.folder, self.fingerprint = folder, dict(fingerprint or {})
        self.parts = self._beside("parts")
        self.batches = 0

    def resume(self, evaluation: Mapping[str, Any]) -> int:
        """Return the number of batches, counted from the first, that this process has written already.

        Raises:
          DataError: if the folder has parts of another evaluation.
        """
        stamp = json.loads(json.dumps({**self.fingerprint, **evaluation}, default=str))
        path = self.parts / STAMP
        if path.is_file():
            found = json.loads(path.read_text())
            for key in sorted(found.keys() | stamp.keys()):
                if found.get(key) != stamp.get(key):
                    raise DataError(
                        f"{self.parts}: parts of another evaluation: {key} is {found.get(key)!r} there, expected "
                        f"{stamp.get(key)!r}; delete the folder, or evaluate as before"
                    )
        else:
            self.parts.mkdir(parents=True, exist_ok=True)
            write_json(path, stamp)
        self.batches = 0
        while self._part(self.batches).is_file():
            self.batches += 1
        return self.batches

    def write(self, number: int, index: np.ndarray, outputs: Outputs) -> None:
        """Write this process's part of batch `number`, completely or not at all; an existing part is kept."""
        self.batches = max(self.batches, number + 1)
        if self._part(number).is_file():
            return
        arrays = {name: _storable(np.asarray(value)) for name, value in outputs.items()}
        with replacing(self._part(number)) as partial, open(partial, "wb") as file:
            np.savez(file, **{INDEX: index}, **arrays)

    def finish(self, total: int, counts: str = "") -> dict[str, np.ndarray]:
        """Merge the parts of all processes on process 0, and return the memory-mapped arrays on every process.

        Args:
          total: Number of items.
          counts: Name of the output with the numbers of rows, if outputs are packed.

        Raises:
          DataError: if an item is missing or came twice, or a part of another process is not on this file system.
        """
        multihost_utils.sync_global_devices(f"written {self.folder}")
        if jax.process_index() == 0:
            self._merge(total, counts)
        multihost_utils.sync_global_devices(f"merged {self.folder}")
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(self.folder.glob("*.npy"))}

    def _merge(self, total: int, counts: str) -> None:
        merged, before, done = (self._beside(suffix) for suffix in ("merging", "before", "done"))
        for stale in (merged, before, done):
            shutil.rmtree(stale, ignore_errors=True)
        merged.mkdir(parents=True)

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            return np.lib.format.open_memmap(merged / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

        for name, array in merge(self._batches, total, counts, allocate).items():
            if name == counts:
                np.save(merged / f"{name}.npy", array)
            else:
                array.flush()
        shutil.copy(self.parts / STAMP, merged / STAMP)
        if self.folder.exists():
            self.folder.rename(before)
        merged.rename(self.folder)
        # Rename first: half-deleted parts without their stamp must not lie where the next evaluation looks for parts.
        self.parts.rename(done)
        for stale in (before, done):
            shutil.rmtree(stale, ignore_errors=True)

    def _batches(self) -> Iterable[tuple[np.ndarray, Outputs]]:
        """Yield index and outputs of every part; an output is read when it is used."""
        for number in range(self.batches):
            for process in range(jax.process_count()):
                path = self._part(number, process)
                if not path.is_file():
                    raise DataError(f"{path}: no such part; expected a file system that all processes share")
                with np.load(path) as part:
                    yield part[INDEX], part

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{suffix}")

    def _part(self, number: int, process: int | None = None) -> Path:
        process = jax.process_index() if process is None else process
        return self.parts / f"{number:07d}-{process:04d}.npz"


def _storable(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "V" else array

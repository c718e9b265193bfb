"""Evaluation outputs collected in memory, or as arrays on disk if they are larger than memory (feature banks)."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_jax.errors import DataError
from vlm_jax.files import replacing, write_json
from vlm_jax.types import Outputs

STAMP = "evaluation.json"
"""Name of the file beside parts and arrays that states what was evaluated and how."""


class Rows:
    """Outputs of items that come in any order, each exactly once.

    Args:
      total: Number of items.
      allocate: Function from name, shape and type to the array that holds one output of all items; `np.empty` if None.
    """

    def __init__(
        self, total: int, allocate: Callable[[str, tuple[int, ...], np.dtype], np.ndarray] | None = None
    ) -> None:
        self.total, self.seen = total, np.zeros(total, np.int32)
        self.allocate = allocate or (lambda name, shape, dtype: np.empty(shape, dtype))
        self.arrays: dict[str, np.ndarray] = {}

    def put(self, index: np.ndarray, outputs: Outputs) -> None:
        """Store the outputs `[n, ...]` of the items `index` `[n]`.

        Raises:
          DataError: if an item does not exist, or an output's shape or type changes between batches.
        """
        if len(index) and not (index.min() >= 0 and index.max() < self.total):
            wrong = int(index.max()) if index.max() >= self.total else int(index.min())
            raise DataError(f"evaluation: found item {wrong}, expected items 0 to {self.total - 1}")
        np.add.at(self.seen, index, 1)
        if not self.arrays:
            self.arrays = {
                name: self.allocate(name, (self.total, *value.shape[1:]), value.dtype)
                for name, value in outputs.items()
            }
        for name, array in self.arrays.items():
            found = outputs[name]
            if (found.shape[1:], found.dtype) != (array.shape[1:], array.dtype):
                raise DataError(
                    f"evaluation: output {name} is {found.dtype} {list(found.shape[1:])} in one batch and "
                    f"{array.dtype} {list(array.shape[1:])} in another"
                )
            array[index] = found

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
            np.savez(file, index=index, **arrays)

    def finish(self, total: int) -> dict[str, np.ndarray]:
        """Merge the parts of all processes on process 0, and return the memory-mapped arrays on every process.

        Raises:
          DataError: if an item is missing or came twice, or a part of another process is not on this file system.
        """
        multihost_utils.sync_global_devices(f"written {self.folder}")
        if jax.process_index() == 0:
            self._merge(total)
        multihost_utils.sync_global_devices(f"merged {self.folder}")
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(self.folder.glob("*.npy"))}

    def _merge(self, total: int) -> None:
        merged, before, done = (self._beside(suffix) for suffix in ("merging", "before", "done"))
        for stale in (merged, before, done):
            shutil.rmtree(stale, ignore_errors=True)
        merged.mkdir(parents=True)

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            return np.lib.format.open_memmap(merged / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

        rows = Rows(total, allocate)
        for number in range(self.batches):
            for process in range(jax.process_count()):
                path = self._part(number, process)
                if not path.is_file():
                    raise DataError(f"{path}: no such part; expected a file system that all processes share")
                with np.load(path) as part:
                    rows.put(part["index"], {name: part[name] for name in part.files if name != "index"})
        for array in rows.finish().values():
            array.flush()
        shutil.copy(self.parts / STAMP, merged / STAMP)
        if self.folder.exists():
            self.folder.rename(before)
        merged.rename(self.folder)
        # Rename first: half-deleted parts without their stamp must not lie where the next evaluation looks for parts.
        self.parts.rename(done)
        for stale in (before, done):
            shutil.rmtree(stale, ignore_errors=True)

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{suffix}")

    def _part(self, number: int, process: int | None = None) -> Path:
        process = jax.process_index() if process is None else process
        return self.parts / f"{number:07d}-{process:04d}.npz"


def _storable(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "V" else array

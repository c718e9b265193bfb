"""Stores of features by name, in the forms that are distributed: an LMDB, a folder of arrays, or an `.npz` file.

The values of the reference's LMDB are compressed `.npz` files. Each has a stray array `allow_pickle`, because that
argument was passed to `np.savez_compressed`. Nothing is unpickled here.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data_prep.key_values import environment, is_lmdb, read_value
from vlm_jax.array_files import check_numbers, load_array, read_member
from vlm_jax.data import feature_store as clips
from vlm_jax.data.records import Skip
from vlm_jax.errors import DataError
from vlm_jax.features import SETTINGS, FeatureError, Settings, load_duration, read_settings
from vlm_jax.interop import torch_files
from vlm_jax.interop.torch_files import TorchFileError
from vlm_jax.text_features import TextSettings, TextVectors

VIDEO_KEYS = ("features",)
TEXT_KEYS = ("token_features", "features")
"""Possible names of an array of words; the first one that exists is used."""
ENDINGS = (".pt", ".npy", ".npz")
STORE = "store"
"""Name of a store's path in `Skip.files`."""


class Store(Protocol):
    """Arrays by name.

    Attributes:
      settings: Settings that the arrays were made with, None where unknown.
    """

    settings: Settings | TextSettings | None

    def names(self) -> Iterator[str]:
        """Yield all names, sorted."""

    def read(self, name: str) -> np.ndarray | None:
        """Return the array of a name, or None if there is none.

        Raises:
          ValueError: for an array that cannot be read.
        """

    def duration(self, name: str) -> float:
        """Return the duration of the video behind an array, seconds, 0 where unknown."""

    def files(self, name: str) -> tuple[str, ...]:
        """Return the files that may hold an array, for `Skip.files`."""


def decode(value: bytes, keys: Sequence[str]) -> np.ndarray:
    """Return the array in a value of the reference's LMDB.

    Args:
      value: Bytes of an `.npz` file.
      keys: Possible names of the array.

    Raises:
      ValueError: for bytes that are no `.npz` file, lack these names, or cannot be read without unpickling.
    """
    if not zipfile.is_zipfile(io.BytesIO(value)):
        raise ValueError("not an .npz file")
    try:
        archive = zipfile.ZipFile(io.BytesIO(value))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(f"a damaged .npz file ({error})") from None
    with archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        key = next((key for key in keys if f"{key}.npy" in archive.namelist()), None)
        if key is None:
            raise ValueError(f"holds {', '.join(names)[:200] or 'nothing'}, expected {' or '.join(keys)}")
        return read_member(archive, f"{key}.npy")


def words(array: np.ndarray) -> np.ndarray:
    """Return features of words as `[L, C]`; a single vector `[C]` is one word."""
    return array[None] if array.ndim == 1 else array


def read_rows(
    store: Store,
    name: str,
    dim: int,
    dtype: str,
    change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
) -> np.ndarray | Skip:
    """Return an array of a store as `[N, dim]`, or the reason why it cannot be used.

    Args:
      store: Store to read from.
      name: Name of the array.
      dim: Expected width.
      dtype: Type to cast to.
      change: Function that is applied before the checks and the cast.
    """
    try:
        array = store.read(name)
    except (ValueError, OSError, TorchFileError) as error:
        return Skip(name, "unreadable", " ".join(str(error).split()), files=store.files(name))
    if array is None:
        return Skip(name, "no features", files=store.files(name))
    array = change(array)
    if not len(array):
        return Skip(name, "no features", "the array is empty")
    if array.ndim != 2 or array.shape[1] != dim:
        return Skip(name, "wrong shape", f"{list(array.shape)}, expected [N, {dim}]")
    array = array.astype(np.float32).astype(clips.numpy_dtype(dtype))
    if not np.isfinite(array.astype(np.float32)).all():
        return Skip(name, "not finite", f"as {dtype}")
    return array


def open_store(path: Path, keys: Sequence[str]) -> Store:
    """Open the store at a path.

    Args:
      path: An LMDB (a folder with `data.mdb`, or a file), a folder of files with one of `ENDINGS`, or an `.npz` file of
        arrays by name (`launch/extract_text_features.py`).
      keys: Possible names of the array where each `.npz` file holds one item.

    Raises:
      DataError: for a path that is none of these.
    """
    try:
        if is_lmdb(path):
            return _Lmdb(path, keys)
        if path.is_dir():
            return _Folder(path, keys)
        return _Archive(path)
    except FeatureError as error:
        raise DataError(str(error)) from None


class _Lmdb:
    """Store in an LMDB."""

    settings = None

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys, self.is_folder = path, keys, path.is_dir()
        environment(path.resolve())

    def names(self) -> Iterator[str]:
        """Yield all keys, which an LMDB keeps sorted."""
        with environment(self.path.resolve()).begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                yield bytes(key).decode(errors="backslashreplace")

    def read(self, name: str) -> np.ndarray | None:
        """Return an array, see `Store.read`."""
        value = read_value(self.path, name)
        return None if value is None else decode(value, self.keys)

    def files(self, name: str) -> tuple[str, ...]:
        """Return files, see `Store.files`."""
        return (f"{STORE}/data.mdb" if self.is_folder else STORE,)

    def duration(self, name: str) -> float:
        """Return a duration, see `Store.duration`."""
        return 0.0


class _Folder:
    """Store in a folder with one file per name.

    The settings are those of `features.json` (video) or `settings.json` (text), None if the folder has neither file.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, keys
        self.settings = None
        if (path / SETTINGS).is_file():
            self.settings = read_settings(path)
        elif (path / "settings.json").is_file():
            self.settings = TextVectors(path).settings

    def names(self) -> Iterator[str]:
        """Yield the paths of files in the folder, without their endings, sorted."""
        files = (file for file in self.path.rglob("*") if file.suffix in ENDINGS)
        yield from sorted({str(file.relative_to(self.path).with_suffix("")) for file in files})

    def read(self, name: str) -> np.ndarray | None:
        """Return an array, see `Store.read`."""
        files = (self.path / f"{name}{ending}" for ending in ENDINGS)
        file = next((file for file in files if os.path.isfile(file)), None)
        if file is None:
            return None
        if file.suffix == ".npz":
            return decode(file.read_bytes(), self.keys)
        if file.suffix == ".npy":
            return load_array(file)
        array = torch_files.load(file)
        if not isinstance(array, np.ndarray):
            raise ValueError(f"holds a {type(array).__name__}, expected one tensor")
        return check_numbers(array)

    def files(self, name: str) -> tuple[str, ...]:
        """Return files, see `Store.files`."""
        return tuple(f"{STORE}/{name}{ending}" for ending in ENDINGS)

    def duration(self, name: str) -> float:
        """Return a duration, see `Store.duration`."""
        return load_duration(self.path, name)


class _Archive:
    """Store in an `.npz` file with one array per name."""

    def __init__(self, path: Path) -> None:
        self.path, self.vectors = path, TextVectors(path)
        self.settings = self.vectors.settings

    def names(self) -> Iterator[str]:
        """Yield the names of its arrays, sorted."""
        yield from sorted(self.vectors)

    def read(self, name: str) -> np.ndarray | None:
        """Return an array, see `Store.read`."""
        return self.vectors.get(name)

    def duration(self, name: str) -> float:
        """Return a duration, see `Store.duration`."""
        return 0.0

    def files(self, name: str) -> tuple[str, ...]:
        """Return files, see `Store.files`."""
        return (STORE,)

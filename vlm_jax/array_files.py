"""Reading of arrays from untrusted `.npy` files and `.npz` archives: claimed sizes are checked before allocating."""

import math
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

NUMBERS = "biuf"
"""Kinds of numpy types that are read: booleans, integers and floating-point numbers."""
_FREE, _FACTOR = 1 << 26, 100  # bytes that any member may unpack to, and further bytes per packed byte
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_array(path: str | Path, rows: np.dtype | None = None) -> np.ndarray:
    """Return the array of a `.npy` file.

    Args:
      path: File to read.
      rows: Structured type of the rows, if they have named columns; else the file must hold numbers.

    Raises:
      ValueError: if the file is damaged, claims more than it holds, or holds something other than numbers `[N, ...]`.
      OSError: if it cannot be read.
    """
    with open(path, "rb") as stream:
        return _read(stream, os.fstat(stream.fileno()).st_size, rows)


def read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return the array of a member of a `.npz` archive; `name` ends in `.npy`.

    Raises:
      ValueError: in the cases of `load_array`, or if the member unpacks to far more than it takes in the archive.
    """
    member = archive.getinfo(name)
    packed = min(member.compress_size, archive.start_dir)
    if member.file_size > _FREE + _FACTOR * packed:
        raise ValueError(f"{packed} bytes claim to unpack to {member.file_size}")
    try:
        stream = archive.open(member)
    except Exception as error:  # such as another compression method, a password, or a header that does not fit
        raise ValueError(f"damaged ({type(error).__name__}: {error})") from None
    with stream:
        return _read(stream, member.file_size)


def check_numbers(array: np.ndarray) -> np.ndarray:
    """Return an array unchanged if it holds real numbers `[N, ...]`.

    Raises:
      ValueError: if it does not.
    """
    if array.dtype.kind not in NUMBERS and array.dtype.name != "bfloat16":
        raise ValueError(f"holds {array.dtype}, expected real numbers")
    if not array.ndim:
        raise ValueError("holds a single number, expected an array")
    return array


def _read(stream: BinaryIO, size: int, rows: np.dtype | None = None) -> np.ndarray:
    """Return the array of a stream of `size` bytes."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"has version {version} of the form")
        shape, _, found = _HEADERS[version](stream)
        claimed = math.prod(shape) * found.itemsize
        if min(shape, default=0) < 0 or claimed > size - stream.tell():
            raise ValueError(f"claims {found} {list(shape)}, {claimed} bytes, but has {size - stream.tell()}")
        if rows is None:
            check_numbers(np.empty([0] * len(shape), found))
        elif found != rows:
            raise ValueError(f"holds {found}, expected rows of {', '.join(rows.names)}")
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError:
        raise
    except Exception as error:  # damaged bytes provoke any error of zlib, zipfile, ast and numpy
        raise ValueError(f"damaged ({type(error).__name__}: {error})") from None

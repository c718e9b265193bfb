"""Reader and writer of Paddle's `.pdparams` files, without Paddle and without executing code from a file."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlm_jax.errors import UserError
from vlm_jax.files import write_atomically
from vlm_jax.interop.torch_files import TorchFileError, load_pickle


class PaddleFileError(UserError):
    """File that cannot be read; one line with the file's name and the fault."""


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Load the arrays of a `.pdparams` or `.pdopt` file, which is a pickled dict, by name.

    Entries that are not arrays are metadata and are left out. The pickle is read by `torch_files.load_pickle`, which
    only calls functions that make arrays and plain containers.

    Raises:
      PaddleFileError: if the file has an older form (a folder with one file per variable, or variables without names),
        is damaged, is another pickle, or asks for anything beyond arrays.
    """
    if Path(path).is_dir():
        raise PaddleFileError(
            f"{path}: a folder (one file per variable, as fluid.io.save_params writes); expected one .pdparams file"
        )
    try:
        with open(path, "rb") as stream:
            begin = stream.read(4)
    except OSError as error:
        raise PaddleFileError(f"{path}: {error.strerror or error}") from None
    if begin == bytes(4):
        raise PaddleFileError(
            f"{path}: variables without names (as fluid.io.save_persistables writes); expected a pickled .pdparams file"
        )
    try:
        content = load_pickle(path, "latin1")
    except TorchFileError as error:
        raise PaddleFileError(str(error).replace("not a torch file", "not a .pdparams file")) from None
    if not isinstance(content, dict):
        raise PaddleFileError(f"{path}: expected a pickled dict of arrays, found a {type(content).__name__}")
    arrays = {}
    for key, value in content.items():
        name = key.decode("latin1") if isinstance(key, bytes) else key
        if isinstance(name, str) and isinstance(value, np.ndarray) and value.dtype != object:
            arrays[name] = value
    if not arrays:
        raise PaddleFileError(f"{path}: a pickled dict without arrays; expected a .pdparams file")
    return arrays


def save(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a `.pdparams` file (pickle protocol 2), under a temporary name that is then changed."""
    content = pickle.dumps({name: np.asarray(array) for name, array in arrays.items()}, protocol=2)
    write_atomically(Path(path), content)

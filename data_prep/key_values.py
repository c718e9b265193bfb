"""Values by name in an LMDB, which needs the package lmdb."""

import functools
from pathlib import Path
from typing import Any

from vlm_jax.errors import DataError


def is_lmdb(path: Path) -> bool:
    """Return whether a path looks like an LMDB: a folder with `data.mdb`, or a file with its ending."""
    return (path / "data.mdb").is_file() or path.suffix in (".mdb", ".lmdb")


@functools.cache
def environment(path: Path) -> Any:
    """Open an LMDB. It is cached because a process may open an LMDB only once.

    Args:
      path: Resolved path of the LMDB.

    Raises:
      DataError: If it is none, or the package is missing.
    """
    try:
        import lmdb
    except ImportError:
        raise DataError(f"{path}: an LMDB; pip install 'vlm_jax[lmdb]' to read it") from None
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DataError(f"{path}: not an LMDB ({error})") from None


def read_value(path: Path, name: str) -> bytes | None:
    """Return the value of a name, None if there is none.

    Raises:
      ValueError: For a damaged page, or a name that no key can have.
    """
    import lmdb

    try:
        with environment(path.resolve()).begin(buffers=True) as transaction:
            value = transaction.get(name.encode())
            return None if value is None else bytes(value)
    except lmdb.Error as error:
        raise ValueError(f"not to be read from the LMDB ({error})") from None

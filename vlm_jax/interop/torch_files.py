"""Reader and writer of the files of `torch.save`, without torch and without executing code from a file.

A torch file consists of a pickle and raw storages. `restricted_pickle` reads the pickle; it knows a fixed list of
globals, `_NAMES`, and rejects every other. Both forms are read: the zip form (torch 1.6 and later) and the legacy form
(a stream of pickles followed by the storages). The memory that a file takes is limited by its size.
"""

import contextlib
import functools
import io
import math
import os
import pickle
import reprlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from vlm_jax.files import replacing
from vlm_jax.interop.restricted_pickle import (
    PLAIN_NAMES,
    Budget,
    TorchFileError,
    Unfinished,
    Unpickler,
    UnsafePickleError,
    are_counts,
    flat_names,
    make_dict,
    shown,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 1 << 24  # bytes read at a time, so that a storage is never held twice
_STORAGE_CLASSES = {  # dtype -> class of torch, without the word Storage
    **{"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"},
    **{"int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool"},
    **{"complex64": "ComplexFloat", "complex128": "ComplexDouble"},
}
_UNTYPED_DTYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")  # dtypes of untyped storages only
_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (*_STORAGE_CLASSES, *_UNTYPED_DTYPES)}


def load(path: str | os.PathLike) -> Any:
    """Load a file written by `torch.save` (.pth, .pt, .pth.tar), in the zip or the legacy form.

    Tensors and parameters become writable numpy arrays (bfloat16 as `ml_dtypes.bfloat16`, 0-d tensors as 0-d arrays).
    Tensors that share a storage in the file share memory here, as they do in torch. OrderedDict, defaultdict, Counter
    and argparse.Namespace become dict, torch.Size a tuple, torch.device and torch.dtype a str ('cuda:0', 'float32').
    Strings written by Python 2 are decoded as latin-1.

    Raises:
      UnsafePickleError: if the file asks for a global that is not on the allow-list.
      TorchFileError: if the file is missing, truncated or inconsistent, a tensor reaches outside its storage, or the
        values take far more memory than the file's size explains (such as tensors expanded without being stored).
    """
    with _naming(path), open(path, "rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
        stream.seek(0)
        return _load_zip(stream) if is_zip else _load_legacy(stream)


def load_pickle(source: str | os.PathLike | bytes, encoding: str = "ASCII") -> Any:
    """Load a plain pickle by the same restricted rules as `load`.

    Args:
      source: Path of the pickle, or its bytes.
      encoding: Encoding of the 8-bit strings of Python 2; numpy arrays pickled there need 'latin1'.

    Raises:
      UnsafePickleError, TorchFileError: in the same cases as `load`.
    """
    in_memory = isinstance(source, bytes)
    with _naming("<bytes>" if in_memory else source), io.BytesIO(source) if in_memory else open(source, "rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        return Unpickler(stream, Budget(size), encoding, _NAMES).load()


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write a tree in the zip form, which `torch.load(path, weights_only=True)` reads.

    Equal trees give equal bytes. The file is written beside `path` under a temporary name and then renamed.

    Args:
      path: File to write.
      tree: Tree of dict (keys str or int, in their order), list, tuple, str, int, float, bool, None and numpy arrays or
        scalars, which become tensors.

    Raises:
      TypeError: naming the position of an unsupported object; nothing is written then.
    """
    arrays: list[np.ndarray] = []
    program = pickle.PROTO + b"\x02" + _pickled(tree, f"{path}: object", arrays) + pickle.STOP
    with replacing(Path(path)) as partial, zipfile.ZipFile(partial, "w") as archive:
        _write_entry(archive, "data.pkl", program)
        _write_entry(archive, "byteorder", sys.byteorder.encode())
        for key, array in enumerate(arrays):
            native = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
            _write_entry(archive, f"data/{key}", native.reshape(-1).view(np.uint8).data)
        _write_entry(archive, "version", b"3\n")


@contextlib.contextmanager
def _naming(name: str | os.PathLike) -> Iterator[None]:
    """Replace any error that a damaged file provokes by a TorchFileError of one line with the file's name."""
    try:
        yield
    except TorchFileError as error:
        raise type(error)(f"{name}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise TorchFileError(f"{name}: {error.strerror or error}") from error
    except Exception as error:  # a hostile or damaged file can provoke any error from pickle, zipfile and numpy
        detail = " ".join([f"{type(error).__name__}:", *str(error).split()])[:200]
        raise TorchFileError(f"{name}: damaged, truncated or not a torch file ({detail})") from error


def _load_zip(stream: BinaryIO) -> Any:
    budget = Budget(os.fstat(stream.fileno()).st_size)
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        prefix = names[0].split("/")[0] if names else ""
        if f"{prefix}/data.pkl" not in names or f"{prefix}/constants.pkl" in names:
            raise TorchFileError("a zip archive that torch.save did not write (no data.pkl, or a TorchScript model)")
        byteorder = sys.byteorder
        if f"{prefix}/byteorder" in names:
            byteorder = _read_entry(archive, f"{prefix}/byteorder", budget).tobytes().decode("latin1")
        if byteorder not in ("little", "big"):
            raise TorchFileError(f"byteorder is {byteorder[:20]!r}, expected 'little' or 'big'")
        storages: dict[str, np.ndarray] = {}

        def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
            if key not in storages:
                content = _read_entry(archive, f"{prefix}/data/{key}", budget, count * dtype.itemsize)
                storages[key] = content.view(dtype)
                if byteorder != sys.byteorder:
                    storages[key].byteswap(inplace=True)
            return _checked(storages[key], dtype, key, count)

        program = _read_entry(archive, f"{prefix}/data.pkl", budget).tobytes()
        return Unpickler(io.BytesIO(program), budget, "latin1", _NAMES, storage, len(program)).load()


def _read_entry(archive: zipfile.ZipFile, name: str, budget: Budget, expected: int | None = None) -> np.ndarray:
    """Read an archive entry as uint8 `[N]`; `expected` is the size in bytes that the pickle states for it."""
    info, shown_name = archive.NameToInfo.get(name), repr(name[:100])
    if info is None:
        raise TorchFileError(f"the archive has no entry {shown_name}")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise TorchFileError(f"entry {shown_name} is compressed or encrypted, expected it stored plainly")
    if expected is not None and info.file_size != expected:
        raise TorchFileError(f"entry {shown_name} holds {info.file_size} bytes, expected {expected}")
    # Check before allocating, as the sizes in the directory are only claims.
    if info.header_offset + info.file_size > archive.start_dir:
        raise TorchFileError(f"entry {shown_name} claims {info.file_size} bytes, more than the file has for it")
    budget.take(info.file_size)  # entries may overlap in the file
    buffer = np.empty(info.file_size, np.uint8)
    with archive.open(info) as stream:
        _fill(stream, buffer)
    return buffer


def _load_legacy(stream: BinaryIO) -> Any:
    budget = Budget(os.fstat(stream.fileno()).st_size)
    if Unpickler(stream, budget, "latin1", _NAMES).load() != _LEGACY_MAGIC:
        raise TorchFileError("not a torch file (neither a zip archive nor a pickle with torch's magic number)")
    for _ in range(2):  # the protocol, always 1001, and the sizes of the writer's C types
        Unpickler(stream, budget, "latin1", _NAMES).load()
    storages: dict[str, np.ndarray] = {}

    def storage(dtype: np.dtype, key: str, count: int, view: Any = None) -> np.ndarray:
        if key not in storages:
            claimed = count * dtype.itemsize + sum(known.nbytes for known in storages.values())
            if claimed > budget.file_size:
                raise TorchFileError(
                    f"storages of {claimed} bytes in a file of {budget.file_size} bytes, truncated or damaged"
                )
            storages[key] = np.empty(count, dtype)  # filled below, after the pickle
        root = _checked(storages[key], dtype, key, count)
        _, offset, size = view or (key, 0, count)
        if not are_counts((offset, size)) or offset + size > count:
            place = f"storage {reprlib.repr(key)} of {count} elements"
            raise TorchFileError(f"a view of {shown(size)} elements from {shown(offset)} on reaches outside {place}")
        return root[offset : offset + size]

    tree = Unpickler(stream, budget, "latin1", _NAMES, storage).load()
    keys = Unpickler(stream, budget, "latin1", _NAMES).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise TorchFileError("the storages of the file are not those of its tensors")
    for key in keys:
        count = int.from_bytes(stream.read(8).ljust(8, b"\xff"), "little", signed=True)  # negative if cut short
        _checked(storages[key], storages[key].dtype, key, count)
        _fill(stream, storages[key].view(np.uint8))
    return tree


def _checked(storage: np.ndarray, dtype: np.dtype, key: str, count: int) -> np.ndarray:
    if (storage.dtype, storage.size) != (dtype, count):
        found = f"{storage.size} elements of {storage.dtype.name}"
        raise TorchFileError(f"storage {reprlib.repr(key)} is given as {count} elements of {dtype.name} and as {found}")
    return storage


def _fill(stream: Any, buffer: np.ndarray) -> None:
    for start in range(0, buffer.nbytes, _CHUNK):
        target = buffer[start : start + _CHUNK]
        if stream.readinto(target.data) < target.nbytes:
            raise TorchFileError("truncated, the file ends inside a storage")


def _rebuild_tensor(budget: Budget, storage: Any, offset: int, size: tuple, stride: tuple, *unused: Any) -> np.ndarray:
    """Build a tensor as a view of its storage.

    `unused` has requires_grad, the hooks and, in newer files, {'conj': bool, 'neg': bool}.
    """
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise TorchFileError("a tensor is built on something that is not a storage")
    if not are_counts((offset,)) or not are_counts(size) or not are_counts(stride) or len(size) != len(stride):
        values = ", ".join(map(shown, (offset, size, stride)))
        raise TorchFileError(f"a tensor has {values} for its offset, size and stride")
    if len(unused) > 2 and unused[2]:
        raise TorchFileError("a tensor with lazily computed values ('conj' or 'neg') is not supported")
    if 0 in size:
        return np.empty(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.size:
        raise TorchFileError(f"a tensor of shape {tuple(size)} reaches element {last} of a storage of {storage.size}")
    width = storage.dtype.itemsize
    budget.take(math.prod(size) * width)  # strides of 0 expand a single number to any shape
    return np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * width, [step * width for step in stride])


def _rebuild_tensor_v3(budget: Budget, storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> np.ndarray:
    """Build a tensor from an untyped storage; `rest` is `unused` of `_rebuild_tensor` with the dtype at index 2."""
    return _rebuild_tensor(budget, storage.view(_DTYPES[rest[2]]), offset, size, stride, *rest[:2], *rest[3:])


def _size(budget: Budget, sizes: Any = ()) -> tuple:
    budget.take(8 * len(sizes))
    return budget.enclose(tuple(sizes))


def _device(budget: Budget, kind: str, *index: int) -> str:
    if not isinstance(kind, str) or not are_counts(index):
        raise TorchFileError(f"a device is made of {shown(kind)} and {shown(index)}, expected a name and a number")
    budget.take(len(kind))
    return ":".join([kind, *map(str, index)])


def _parameter(budget: Budget, data: Any, *unused: Any) -> Any:
    return data


def _logged_values(budget: Budget, *unused: Any) -> Unfinished:
    return Unfinished(functools.partial(make_dict, budget))


def _method(budget: Budget, owner: Any, name: Any) -> None:
    """Leave out a method of the class of logged values; nothing else has attributes that a file may ask for."""
    if not isinstance(owner, functools.partial) or owner.func is not _logged_values:
        asked = f"builtins.getattr of {shown(owner)}"
        raise UnsafePickleError(f"the pickle asks for {asked}, which is not on the list of safe names")


_NAMES = PLAIN_NAMES | flat_names(
    {
        "torch": {
            **{"Size": _size, "device": _device},
            **{name: name for name in _DTYPES},
            **{f"{kind}Storage": _DTYPES[name] for name, kind in _STORAGE_CLASSES.items()},
        },
        "torch.storage": {"UntypedStorage": np.dtype(np.uint8)},
        "torch._utils": {
            **dict.fromkeys(("_rebuild_tensor", "_rebuild_tensor_v2"), _rebuild_tensor),
            "_rebuild_tensor_v3": _rebuild_tensor_v3,
            **dict.fromkeys(("_rebuild_parameter", "_rebuild_parameter_with_state"), _parameter),
        },
        # Logged values that checkpoints of OpenMMLab's training loop carry: their state as a dict. Statistics that the
        # file names as methods of the class are left out.
        "mmengine.logging.history_buffer": {"HistoryBuffer": _logged_values},
        **{module: {"getattr": _method} for module in ("builtins", "__builtin__")},
    }
)


class _Opcodes(bytes):
    """Encoded part of a pickle."""


def _pickled(value: Any, place: str, arrays: list[np.ndarray]) -> bytes:
    """Return the opcodes that make `value`; its arrays are appended to `arrays`, to be written as storages."""
    if isinstance(value, _Opcodes):
        return value
    if value is None or type(value) in (bool, int, float, str):
        return pickle.dumps(value, protocol=2)[2:-1]  # without PROTO and STOP
    if isinstance(value, np.ndarray | np.generic):
        return _pickled_tensor(np.asarray(value), place, arrays)
    if isinstance(value, dict):
        if others := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(
                f"cannot save {place}: its key {others[0]!r} is a {type(others[0]).__name__}, not str or int"
            )
        items = [_pickled(k, place, arrays) + _pickled(v, f"{place}[{k!r}]", arrays) for k, v in value.items()]
        return pickle.EMPTY_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS
    if isinstance(value, list | tuple):
        items = [_pickled(item, f"{place}[{index}]", arrays) for index, item in enumerate(value)]
        start, end = (pickle.EMPTY_LIST, pickle.APPENDS) if isinstance(value, list) else (b"", pickle.TUPLE)
        return start + pickle.MARK + b"".join(items) + end
    raise TypeError(f"cannot save {place}: a {type(value).__name__} is not supported")


def _pickled_tensor(array: np.ndarray, place: str, arrays: list[np.ndarray]) -> bytes:
    kind = _STORAGE_CLASSES.get(array.dtype.name)
    if kind is None:
        raise TypeError(f"cannot save {place}: an array of dtype {array.dtype} is not supported")
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    storage = ("storage", _Opcodes(f"ctorch\n{kind}Storage\n".encode()), str(len(arrays)), "cpu", array.size)
    arrays.append(array)
    reference = _Opcodes(_pickled(storage, place, []) + pickle.BINPERSID)
    hooks = _Opcodes(b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE)
    arguments = _pickled((reference, 0, array.shape, strides, False, hooks), place, [])
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + pickle.REDUCE


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    info.file_size = len(data)  # lets zipfile choose the zip64 form for a large entry
    with archive.open(info, "w") as entry:
        entry.write(data)

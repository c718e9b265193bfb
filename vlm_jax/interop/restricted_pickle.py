"""Unpickler for untrusted files: only listed names are called, and memory and depth are limited.

The limit on memory is proportional to the size of the file. `PLAIN_NAMES` has the names of plain containers and numpy
arrays. A format that needs more names adds a table of the same form. Every function of a table takes the `Budget` of
its file as the first argument and charges it before allocating.
"""

import functools
import math
import pickle
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from vlm_jax.errors import UserError

MAX_DEPTH = 64
"""Largest depth of nested containers; configs stored in checkpoints have fewer than ten levels."""
_FREE, _FACTOR = 1 << 20, 16  # bytes that every file may take in memory, and further bytes per byte of the file
_ENTRY = 64  # bytes charged for an entry of a dict or set
_LARGE_READ = 1 << 16  # bytes; for shorter reads, a check of the position in the file costs more than it saves
_MAX_DIMENSIONS = 64  # axes that a numpy array may have

Names = Mapping[tuple[str, str], Any]


class TorchFileError(UserError):
    """File that cannot be read; one line with the file's name and the fault."""


class UnsafePickleError(TorchFileError):
    """Pickle that asks for something outside the allow-list; it is rejected and nothing is executed."""


class Budget:
    """Limit on the memory that one file may take, in proportion to its size.

    Args:
      file_size: Size of the file, bytes.
    """

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self._limit = self._left = _FREE + _FACTOR * file_size
        # id -> (object, depth, size). The object is held so that its id is not reused.
        self._measures: dict[int, tuple[Any, int, int]] = {}

    def take(self, size: int) -> None:
        """Charge a number of bytes or elements.

        Raises:
          TorchFileError: if the file has asked for more than its size allows.
        """
        self._left -= size
        if self._left < 0:
            raise TorchFileError(f"its values take more than {self._limit} bytes, too many for {self.file_size} bytes")

    def enclose(self, container: Any) -> Any:
        """Return a tuple, frozenset or object array unchanged, after checking its depth and its unshared size.

        Such containers are hashed, printed and freed by recursion in C. This crashes the process if they are deep, and
        takes exponential time if their parts are shared. As they never change, measuring them once is enough.

        Raises:
          TorchFileError: if the container is too deep or too large.
        """
        parts = _parts(container)
        measures = [self._measures[id(part)] for part in parts if id(part) in self._measures]
        depth = 1 + max((depth for _, depth, _ in measures), default=0)
        size = len(parts) + sum(size for _, _, size in measures)
        self._check_measure(depth, size)
        self._measures[id(container)] = container, depth, size
        return container

    def check_tree(self, tree: Any) -> None:
        """Check a whole tree: its depth, its size with every shared part counted again, and that it has no cycle.

        Raises:
          TorchFileError: if one of the checks fails.
        """
        # id of a container -> (depth, size), or None while its parts are visited
        measures: dict[int, tuple[int, int] | None] = {}
        pending = [(tree, False)] if _is_container(tree) else []
        while pending:
            container, visited = pending.pop()
            if visited:
                depth, size = 1, 0
                for part in _parts(container):
                    inner = measures.get(id(part)) or (0, _weight(part))
                    depth, size = max(depth, 1 + inner[0]), size + inner[1]
                self._check_measure(depth, size)
                measures[id(container)] = depth, 1 + size
            elif id(container) not in measures:
                measures[id(container)] = None
                pending.append((container, True))
                pending.extend((part, False) for part in _parts(container) if _is_container(part))
            elif measures[id(container)] is None:
                raise TorchFileError("a container holds itself")

    def _check_measure(self, depth: int, size: int) -> None:
        if depth > MAX_DEPTH:
            raise TorchFileError(f"containers are nested more than {MAX_DEPTH} deep")
        if size > self._limit:
            raise TorchFileError(f"its values repeat to more than {self._limit}, too many for {self.file_size} bytes")


def _is_container(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.hasobject
    return isinstance(value, list | tuple | dict | set | frozenset)


def _parts(container: Any) -> Sequence:
    """Return the elements of a container; for a dict, its keys and values."""
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    if isinstance(container, np.ndarray):
        return list(container.flat)
    return container if isinstance(container, list | tuple) else list(container)


def _weight(value: Any) -> int:
    """Return the size of a value that is not a container, in bytes or elements, whichever is larger."""
    return max(value.nbytes, value.size) if isinstance(value, np.ndarray) else 1


class Unfinished(dict):
    """Placeholder for a numpy dtype, a numpy array or a Namespace, until the opcode BUILD supplies its state.

    An empty Namespace has no BUILD and stays this empty dict.
    """

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self.finish = finish
        self.finished: Any = self


class Unpickler(pickle._Unpickler):
    """Unpickler of the standard library (in Python) whose globals all come from `names`.

    The functions of `names` are thus the only callables that a pickle can reach. The Python version is used, not the C
    one, because the opcode BUILD must be replaced: the original can set attributes of classes and functions.

    Args:
      stream: Stream at the beginning of the pickle; it is read up to the end of the pickle.
      budget: Budget of the file.
      encoding: Encoding of 8-bit strings written by Python 2.
      names: Objects that the pickle may ask for, by module and name; functions take the budget as first argument.
      storage: Function that returns a storage from the rest of its persistent id; None if the format has no storages.
      size: Size of the stream in bytes; that of the file if not given.
    """

    def __init__(
        self,
        stream: BinaryIO,
        budget: Budget,
        encoding: str,
        names: Names,
        storage: Callable[..., np.ndarray] | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(stream, encoding=encoding)
        self.budget, self.names, self.storage = budget, names, storage
        self._file_read = functools.partial(_read, stream, budget.file_size if size is None else size)

    def load(self) -> Any:
        tree = super().load()
        self.budget.check_tree(tree)
        return tree

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            asked = ascii(f"{module}.{name}")[:200]
            raise UnsafePickleError(f"the pickle asks for {asked}, which is not on the list of safe names")
        value = self.names[module, name]
        return functools.partial(value, self.budget) if callable(value) else value

    def persistent_load(self, pid: Any) -> np.ndarray:
        if self.storage is not None and isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[0], str):
            kind, dtype, key, _, count, *view = pid
            if kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str) and are_counts((count,)):
                return self.storage(dtype, key, count, *view)
        raise TorchFileError(f"a persistent id, {shown(pid)}, is not that of a storage")

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if type(made) is dict:  # the attributes of an OrderedDict, such as a state dict's _metadata
            return
        if not isinstance(made, Unfinished):
            raise UnsafePickleError(f"the pickle sets the state of a {type(made).__name__}, which is not safe")
        self.stack[-1] = made.finished = made.finish(state)

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))  # the standard library allocates before it reads

    def refuse(self) -> None:
        raise UnsafePickleError("the pickle uses an extension code, a keyword constructor or an outside buffer")

    dispatch = pickle._Unpickler.dispatch | dict.fromkeys(b"\x82\x83\x84\x92\x97", refuse)  # EXT1 to NEXT_BUFFER
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.NEWOBJ[0]] = dispatch[pickle.REDUCE[0]]  # the same stack layout, but a call instead of __new__


def _read(stream: BinaryIO, end: int, size: int) -> bytes:
    """Read bytes after checking that the stream has them, as the length in a pickle is only a claim."""
    if size > _LARGE_READ and size > end - stream.tell():
        raise TorchFileError(f"truncated, it ends inside a value of {size} bytes")
    return stream.read(size)


def _checking_keys(load: Callable, keys: slice) -> Callable:
    return lambda unpickler: (_check_keys(unpickler.stack[keys]), load(unpickler))


def _enclosing(load: Callable) -> Callable:
    return lambda unpickler: (load(unpickler), unpickler.budget.enclose(unpickler.stack[-1]))


def _finishing(load: Callable) -> Callable:
    def load_finished(unpickler: Unpickler) -> None:
        load(unpickler)
        if isinstance(unpickler.stack[-1], Unfinished):
            unpickler.stack[-1] = unpickler.stack[-1].finished

    return load_finished


def _filling(load: Callable, kind: type, marked: bool) -> Callable:
    """Wrap an opcode so that it fills containers of one type only; the original calls methods of any object."""

    def load_into(unpickler: Unpickler) -> None:
        filled = unpickler.metastack[-1][-1] if marked else unpickler.stack[-2 if kind is list else -3]
        if not isinstance(filled, kind):
            raise TorchFileError(f"the pickle fills something that is not a {kind.__name__}")
        load(unpickler)

    return load_into


for _opcodes, _keys in {b"s": slice(-2, -1), b"ud": slice(0, None, 2), b"\x90\x91": slice(None)}.items():
    for _opcode in _opcodes:  # SETITEM, SETITEMS and DICT, ADDITEMS and FROZENSET
        Unpickler.dispatch[_opcode] = _checking_keys(Unpickler.dispatch[_opcode], _keys)
for _opcode in b"t\x85\x86\x87\x91":  # TUPLE to TUPLE3, FROZENSET
    Unpickler.dispatch[_opcode] = _enclosing(Unpickler.dispatch[_opcode])
for _opcode in b"ghj":  # GET, BINGET, LONG_BINGET
    Unpickler.dispatch[_opcode] = _finishing(Unpickler.dispatch[_opcode])
for _opcodes, _kind in {b"ae": list, b"su": dict, b"\x90": set}.items():
    for _opcode in _opcodes:  # APPEND and APPENDS, SETITEM and SETITEMS, ADDITEMS
        Unpickler.dispatch[_opcode] = _filling(Unpickler.dispatch[_opcode], _kind, _opcode in b"eu\x90")


def _check_keys(keys: Iterable) -> None:
    """Reject keys that are nested tuples: no format has such keys, and hashing them is recursion in C."""
    if any(isinstance(part, tuple) for key in keys if isinstance(key, tuple) for part in key):
        raise TorchFileError("a dict key or set element is a nested tuple")


def are_counts(values: Any) -> bool:
    """Return whether values can be the shape of an array: at most 64 integers from 0 to 2^63 - 1."""
    are_few = isinstance(values, tuple | list) and len(values) <= _MAX_DIMENSIONS
    return are_few and all(isinstance(value, int) and 0 <= value < 1 << 63 for value in values)


def shown(value: Any) -> str:
    """Return a value as text for a message; only plain values are printed, as printing others may take forever."""
    plain = isinstance(value, str | int | float) or are_counts(value)
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def make_dict(budget: Budget, items: Any = ()) -> dict:
    """Make a dict from a dict or from pairs."""
    budget.take(_ENTRY * len(items))
    pairs = list(items.items() if isinstance(items, dict) else items)
    _check_keys(key for key, _ in pairs)
    return dict(pairs)


def _make_set(budget: Budget, items: Any = ()) -> set:
    budget.take(_ENTRY * len(items))
    members = list(items)
    _check_keys(members)
    return set(members)


def _encode(budget: Budget, text: str = "", encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"the pickle uses the codec {shown(encoding)}, which is not safe")
    budget.take(len(text))
    return text.encode("latin1")


def _numpy_dtype(budget: Budget, description: str, *unused: Any) -> Unfinished:
    if not re.fullmatch(r"[<>|=]?[biufcSUO]\d*", description):
        raise TorchFileError(f"numpy dtype {shown(description)} is not supported")
    return Unfinished(lambda state: np.dtype(description).newbyteorder(state[1]))


def _numpy_array(budget: Budget, data: Any, dtype: Any, shape: tuple, order: str) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or not are_counts(shape):
        raise TorchFileError(f"a numpy array has {shown(dtype)} for its dtype and {shown(shape)} for its shape")
    if not isinstance(data, list if dtype.hasobject else bytes | bytearray | str):
        raise TorchFileError(f"a numpy array of {dtype} is made of {shown(data)}")
    elements = math.prod(shape)
    budget.take(max(elements, 1) * max(dtype.itemsize, 1))
    if dtype.hasobject:
        if len(data) != elements:
            raise TorchFileError(f"a numpy array of shape {tuple(shape)} has {len(data)} elements")
        flat = np.empty(elements, object)
        for index, item in enumerate(data):
            flat[index] = item
        return budget.enclose(flat.reshape(shape, order=order))
    data = data.encode("latin1") if isinstance(data, str) else data
    expected = elements * dtype.itemsize
    if len(data) != expected:
        raise TorchFileError(f"a numpy array of shape {tuple(shape)} has {len(data)} bytes, expected {expected}")
    return np.ndarray(shape, dtype, bytearray(data), order=order)


def _reconstruct(budget: Budget, *unused: Any) -> Unfinished:
    return Unfinished(lambda made: _numpy_array(budget, made[4], made[2], made[1], "CF"[made[3]]))


def flat_names(modules: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """Flatten a table {module: {name: value}} to {(module, name): value}."""
    return {(module, name): value for module, names in modules.items() for name, value in names.items()}


_BUILTINS: dict[str, Any] = {
    "dict": make_dict,
    "set": _make_set,
    "frozenset": lambda budget, items=(): budget.enclose(frozenset(_make_set(budget, items))),
    "bytes": _encode,
    **{name: name for name in ("list", "int", "float", "str", "bool")},  # factories of a defaultdict
}
_MULTIARRAY: dict[str, Any] = {
    "_reconstruct": _reconstruct,
    "scalar": lambda budget, dtype, data: _numpy_array(budget, data, dtype, (), "C")[()],
}
PLAIN_NAMES = flat_names(
    {
        **{"builtins": _BUILTINS, "__builtin__": _BUILTINS, "_codecs": {"encode": _encode}},
        "argparse": {"Namespace": lambda budget: Unfinished(functools.partial(make_dict, budget))},
        "collections": {
            **{"OrderedDict": make_dict, "Counter": make_dict},
            "defaultdict": lambda budget, *unused: {},
        },
        "numpy": {"dtype": _numpy_dtype, "ndarray": "ndarray"},
        **{"numpy.core.multiarray": _MULTIARRAY, "numpy._core.multiarray": _MULTIARRAY},
        **{f"numpy.{core}.numeric": {"_frombuffer": _numpy_array} for core in ("core", "_core")},
    }
)

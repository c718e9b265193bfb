"""Runs pickles of strangers: only listed names are called, and memory and depth are limited by the size of the file.

`PLAIN_NAMES` has the names of plain containers and numpy arrays. What else a format needs is a table of the same form:
every function takes the `Budget` of its file first and charges it before it allocates.
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
"""Containers inside each other; configs stored in checkpoints have fewer than ten."""
_FREE, _FACTOR = 1 << 20, 16  # bytes that every file may make, and bytes for each byte of the file
_ENTRY = 64  # bytes charged for an entry of a dict or set
_LARGE_READ = 1 << 16  # bytes; shorter reads are not worth asking for the position in the file
_MAX_DIMENSIONS = 64  # of a numpy array

Names = Mapping[tuple[str, str], Any]


class TorchFileError(UserError):
    """A file that cannot be read: one line with the file's name and what was wrong."""


class UnsafePickleError(TorchFileError):
    """A pickle that asks for something outside the allow-list; it was rejected and nothing was run."""


class Budget:
    """Limits what one file makes in memory, in proportion to its size.

    Args:
      file_size: Bytes of the file.
    """

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self._limit = self._left = _FREE + _FACTOR * file_size
        self._measures: dict[int, tuple[Any, int, int]] = {}  # id -> the object, which keeps its id; depth; size

    def take(self, size: int) -> None:
        """Charge bytes or elements; raises TorchFileError where the file asks for more than its size allows."""
        self._left -= size
        if self._left < 0:
            raise TorchFileError(f"its values take more than {self._limit} bytes, too many for {self.file_size} bytes")

    def enclose(self, container: Any) -> Any:
        """Return a tuple, frozenset or object array unchanged, once its depth and its unshared size were checked.

        Such containers are hashed, printed and freed by recursion in C, which ends the process when they are deep and
        takes exponential time when their parts are shared. As they never change, measuring them once is enough.
        """
        parts = _parts(container)
        measures = [self._measures[id(part)] for part in parts if id(part) in self._measures]
        depth = 1 + max((depth for _, depth, _ in measures), default=0)
        size = len(parts) + sum(size for _, _, size in measures)
        self._check_measure(depth, size)
        self._measures[id(container)] = container, depth, size
        return container

    def check_tree(self, tree: Any) -> None:
        """Check a whole tree: its depth, its size with every shared part counted again, and that it has no cycle."""
        measures: dict[int, tuple[int, int] | None] = {}  # of containers; None while their parts are visited
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
    """What a container holds."""
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    if isinstance(container, np.ndarray):
        return list(container.flat)
    return container if isinstance(container, list | tuple) else list(container)


def _weight(value: Any) -> int:
    """Bytes or elements of a value that is no container."""
    return max(value.nbytes, value.size) if isinstance(value, np.ndarray) else 1


class Unfinished(dict):
    """A numpy dtype, a numpy array or a Namespace until BUILD brings its state; an empty Namespace stays this dict."""

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self.finish = finish
        self.finished: Any = self


class Unpickler(pickle._Unpickler):
    """The standard library's Python unpickler, in which globals are only ever answered from `names`.

    The functions of `names` are thus the only callables that a pickle can reach. The Python version is used, not the C
    one, because BUILD must be replaced: there it can set attributes of classes and functions.

    Args:
      stream: Where the pickle begins; it is read up to the end of the pickle.
      budget: Of the file.
      encoding: Of 8-bit strings written by Python 2.
      names: The objects that the pickle may ask for; functions are given the budget first.
      storage: Returns a storage from the rest of its persistent id, where the format has them.
      size: Bytes of the stream where it is not the file itself.
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
    """Read bytes after a check of how many are left: the length in a pickle is only a claim."""
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
    """Fill containers of one type only: the standard library calls methods of whatever lies there."""

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
    """Reject nested tuples: no format has such keys, and hashing them is recursion in C."""
    if any(isinstance(part, tuple) for key in keys if isinstance(key, tuple) for part in key):
        raise TorchFileError("a dict key or set element is a nested tuple")


def are_counts(values: Any) -> bool:
    """Whether these are as many sizes as an array can have, none negative."""
    are_few = isinstance(values, tuple | list) and len(values) <= _MAX_DIMENSIONS
    return are_few and all(isinstance(value, int) and 0 <= value < 1 << 63 for value in values)


def shown(value: Any) -> str:
    """Words for a value in a message; only plain values are printed, as printing others may take forever."""
    plain = isinstance(value, str | int | float) or are_counts(value)
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def make_dict(budget: Budget, items: Any = ()) -> dict:
    """Return a dict of a dict or of pairs."""
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
    """Return a table by (module, name) of one by module."""
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

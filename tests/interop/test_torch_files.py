"""Files are put together byte by byte, so that no test needs torch; those in fixtures/ were written by torch 2.13.0."""

import argparse
import collections
import copyreg
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vlm_jax.interop.restricted_pickle import TorchFileError, UnsafePickleError
from vlm_jax.interop.torch_files import load, load_pickle, save

FIXTURES = Path(__file__).parent / "fixtures"
FORMS = ("zip_format.pt", "legacy_format.pt")
DATA = np.arange(6, dtype=np.float32).tobytes()
KINDS = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
KINDS |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
KINDS |= {"ComplexFloat": "complex64", "ComplexDouble": "complex128"}


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def value(item):
    """Opcodes of a plain value; bytes are opcodes already."""
    if isinstance(item, tuple):
        return b"(" + b"".join(map(value, item)) + b"t"
    return item if isinstance(item, bytes) else pickle.dumps(item, 2)[2:-1]


def call(module, name, *arguments):
    return named(module, name) + value(arguments) + b"R"


def storage(kind="FloatStorage", key="0", count=6, *view):
    return value(("storage", named("torch", kind), key, "cpu", count, *view)) + b"Q"


def tensor(source=None, offset=0, size=(6,), stride=(1,), *more):
    source = storage() if source is None else source
    return call("torch._utils", "_rebuild_tensor_v2", source, offset, size, stride, False, {}, *more)


def program(body):
    return b"\x80\x02" + body + b"."


def zip_file(path, body, storages, entries=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"data.pkl": program(body), **dict(entries)}.items():
            archive.writestr(f"model_1/{name}", data)
        for key, data in storages.items():
            archive.writestr(f"model_1/data/{key}", data)
    return path


def legacy_file(path, body, storages, magic=0x1950A86A20F9469CFC6C, keys=None):
    """`storages` maps a key to (elements, bytes)."""
    parts = [pickle.dumps(item, 2) for item in (magic, 1001, {"little_endian": True})]
    parts += [program(body), pickle.dumps(list(storages) if keys is None else keys, 2)]
    path.write_bytes(b"".join(parts + [struct.pack("<q", count) + data for count, data in storages.values()]))
    return path


def both(folder, body, data=DATA, count=6):
    return zip_file(folder / "a.pt", body, {"0": data}), legacy_file(folder / "b.pt", body, {"0": (count, data)})


@pytest.mark.parametrize("form", FORMS)
def test_reads_a_file_of_torch(form):
    tree = load(FIXTURES / form)
    arrays = {name: tree.pop(name) for name, leaf in list(tree.items()) if isinstance(leaf, np.ndarray)}
    assert {name: (leaf.dtype.name, leaf.shape, leaf.tolist()) for name, leaf in arrays.items()} == {
        **{"matrix": ("float32", (2, 3), [[1.5, -2.0, 3.25], [4.0, 5.5, -6.75]]), "count": ("int64", (), 7)},
        **{"transposed": ("float32", (3, 2), [[0, 3], [1, 4], [2, 5]]), "empty": ("float32", (0, 3), [])},
        **{"bfloat16": ("bfloat16", (3,), [1.0, -0.5, 3.140625]), "float16": ("float16", (2,), [0.5, 65504.0])},
        **{"head": ("float32", (4,), [0, 1, 2, 3]), "tail": ("float32", (2, 2), [[8, 9], [10, 11]])},
        **{"parameter": ("float32", (2,), [1.0, 2.0]), "mask": ("bool", (2,), [True, False])},
    }
    assert all(leaf.flags.writeable for leaf in arrays.values())
    plain = {"epoch": 3, "lr": 0.5, "name": "été", "none": None, "flag": True, "list": [1, (2, "x")], "big": 2**40}
    assert tree.pop("nested") == {**plain, 5: -1}
    assert tree == {"size": (2, 3), "device": "cuda:1", "dtype": "float16", "arguments": {"batch": 8}}
    assert type(tree) is type(tree["arguments"]) is dict


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_is_an_error_in_one_line(form, tmp_path):
    whole = (FIXTURES / form).read_bytes()
    path = tmp_path / "cut.pt"
    for length in [*range(0, len(whole) - 40, 13), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(TorchFileError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "dtype"), KINDS.items())
def test_each_storage_type_in_both_forms_and_byte_orders(kind, dtype, tmp_path):
    array = np.array([0, 1, 1]).astype(getattr(ml_dtypes, dtype, dtype))
    body = tensor(storage(f"{kind}Storage", "0", 3), size=(3,))
    swapped = zip_file(tmp_path / "c.pt", body, {"0": array.byteswap().tobytes()}, {"byteorder": "big"})
    for path in (*both(tmp_path, body, array.tobytes(), 3), swapped):
        assert load(path).dtype == array.dtype
        assert load(path).tobytes() == array.tobytes()


def test_strides_offsets_shared_storages_and_legacy_views(tmp_path):
    views = (tensor(None, 1, (2, 2), (1, 2)), tensor(None, 5, (), ()), tensor(None, 0, (3, 2), (0, 1)))
    for path in both(tmp_path, value(views)):
        view, scalar, expanded = load(path)
        assert view.tolist() == [[1, 3], [2, 4]]
        assert (scalar.shape, scalar.item()) == ((), 5)
        view[0, 0] = 9
        assert expanded.tolist() == [[0, 9]] * 3
    root, part = (storage("FloatStorage", "0", 6, view) for view in (None, ("v", 2, 3)))
    body = value((tensor(part, 1, (2,)), tensor(root)))
    part, whole = load(legacy_file(tmp_path / "c.pt", body, {"0": (6, DATA)}))
    assert (part.tolist(), whole.tolist()) == ([3, 4], [0, 1, 2, 3, 4, 5])


def test_old_and_new_rebuild_functions(tmp_path):
    untyped = value(("storage", named("torch.storage", "UntypedStorage"), "1", "cpu", 4)) + b"Q"
    body = (
        call("torch._utils", "_rebuild_tensor", storage(), 0, (6,), (1,)),
        call("torch._utils", "_rebuild_parameter_with_state", tensor(), True, {}, {"x": 1}),
        call("torch._utils", "_rebuild_tensor_v3", untyped, 0, (2,), (1,), False, {}, named("torch", "uint16")),
        untyped,
    )
    old, parameter, new, raw = load(zip_file(tmp_path / "a.pt", value(body), {"0": DATA, "1": b"\x01\x02\x03\x04"}))
    assert old.tolist() == parameter.tolist() == [0, 1, 2, 3, 4, 5]
    assert (new.dtype, new.tolist(), raw.tolist()) == (np.uint16, [0x0201, 0x0403], [1, 2, 3, 4])


OUTSIDE = [(1, (6,), (1,)), (6, (), ()), (0, (7,), (1,)), (0, (2, 3), (4, 1)), (0, (2**62, 2**62), (1, 1))]
MALFORMED = [(-1, (2,), (1,)), (5, (3,), (-1,)), (0, (-1,), (1,)), (0, (2, 3), (1,)), (0, (0, -5), (1, 1)), (0, 6, 1)]
MALFORMED += [(0, ("2",), (1,)), (0.0, (2,), (1,)), (0, (1,) * 100, (1,) * 100)]
NOT_STORAGES = ["0", {}, named("torch", "FloatStorage"), tensor(None, 0, (6, 1), (1, 1)), tensor(None, 0, (3,), (2,))]
STRANGE_IDS = [7, (), ("storage",), [1, "storage"], ("storage", "FloatStorage", "0", "cpu", 6)]
STRANGE_IDS += [("module", named("torch", "FloatStorage"), "0", "cpu", 6)]
BAD_BODIES = [
    *[(tensor(None, *view), "reaches element") for view in OUTSIDE],
    *[(tensor(None, *view), "offset, size and stride|damaged") for view in MALFORMED],
    *[(tensor(item), "not a storage") for item in NOT_STORAGES],
    (tensor(None, 0, (6,), (1,), {"conj": True}), "conj"),
    (value((storage(), storage("IntStorage"))), "6 elements of int32 and as 6 elements of float32"),
    (value((storage(), storage(count=5))), "given as 5 elements of float32 and as 6"),
    *[(body, "persistent id") for body in (b"P0\n", *(value(item) + b"Q" for item in STRANGE_IDS))],
    *[(storage(key=key, count=count), "persistent id") for key, count in ((0, 6), ("0", -6), ("0", "6"))],
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
def test_inconsistent_tensor_or_storage(body, message, tmp_path):
    for path in both(tmp_path, body):
        with pytest.raises(TorchFileError, match=rf"{path.name}: .*({message})"):
            load(path)


DICT = named("collections", "OrderedDict")
HOSTILE = {
    "reduce": (call("posix", "system", "touch ran"), "posix.system"),
    "reduce, text": (b"cposix\nsystem\n(S'touch ran'\ntR", "posix.system"),
    "reduce, inside": (b"}" + value("a") + b"](" + call("os", "system", "touch ran") + b"es", "os.system"),
    "eval": (call("__builtin__", "eval", "open('ran', 'w')"), "__builtin__.eval"),
    "getattr": (call("builtins", "getattr", call("builtins", "__import__", "os"), "system"), "builtins.__import__"),
    "attribute": (call("builtins", "getattr", "text", "join"), "builtins.getattr"),
    "dotted name": (b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93", "collections.OrderedDict.__init__"),
    "names from the memo": (b"\x8c\x06system\x94\x8c\x02os\x940h\x01h\x00\x93\x8c\x09touch ran\x85R", "os.system"),
    "instance": (b"(S'touch ran'\nios\nsystem\n", "os.system"),
    "object": (b"(cos\nsystem\nS'touch ran'\no", "os.system"),
    "new object": (named("subprocess", "Popen") + value(("touch ran",)) + b"\x81", "subprocess.Popen"),
    "line break in a name": (b"\x8c\x02o\n\x8c\x03a\nb\x93", r"o\n.a\nb"),
    "keyword constructor": (DICT + b")}\x92", "keyword constructor"),
    "state of a function": (DICT + value((None, {"x": 1})) + b"b", "sets the state"),
    "state of a storage type": (named("torch", "FloatStorage") + value({"x": 1}) + b"b", "sets the state"),
    "state of a list": (b"]" + value((None, {"append": 1})) + b"b", "sets the state"),
    "other codec": (call("_codecs", "encode", "x", "zip"), "codec"),
    "extension code": (b"\x82\xf0" + value(("touch ran",)) + b"R", "extension code"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body, asked = HOSTILE[name]
    Path("plain.pkl").write_bytes(program(body))
    zip_file(Path("zip.pt"), body, {})
    legacy_file(Path("legacy.pt"), body, {})
    monkeypatch.setitem(copyreg._inverted_registry, 240, ("os", "system"))
    for read, source in ((load_pickle, "plain.pkl"), (load, "zip.pt"), (load, "legacy.pt"), (load, "plain.pkl")):
        with pytest.raises(UnsafePickleError) as caught:
            read(source)
        message = str(caught.value)
        assert message.startswith(f"{source}: ")
        assert asked in message
        assert "\n" not in message
    assert not Path("ran").exists()


NOT_CALLABLE = [value("text") + value(("x",)) + b"R", value({}) + b")\x81", call("torch", "float32")]
NOT_CALLABLE += [
    call("torch", "FloatStorage"),
    DICT + value(1) + value(2) + b"s",
    value(([1],)) + value(([2],)) + b"\x85R",
]


@pytest.mark.parametrize("body", [*NOT_CALLABLE, storage()])
def test_only_functions_of_the_list_are_called_and_plain_pickles_have_no_storages(body):
    with pytest.raises(TorchFileError, match="<bytes>: "):
        load_pickle(program(body))


def test_state_of_a_dict_is_ignored():
    filled = DICT + b")R" + value("w") + value(1) + b"s" + value({"_metadata": {"w": 2}}) + b"b"
    assert load_pickle(program(filled)) == {"w": 1}
    made = load_pickle(program(DICT + b")R" + value((None, {"get": 1, "__class__": 2})) + b"b"))
    assert made == {}
    assert made.get("x") is collections.OrderedDict().get("x") is None


@pytest.mark.parametrize(("before", "after"), [(b"}", b"Ns"), (named("builtins", "set") + b"](", b"e\x85R")])
@pytest.mark.parametrize(("depth", "message"), [(2, "nested tuple"), (300_000, "nested more than 64 deep")])
def test_nested_tuple_as_a_key_is_an_error_not_a_crash(before, after, depth, message):
    with pytest.raises(TorchFileError, match=message):
        load_pickle(program(before + b")" + b"\x85" * depth + after))


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_and_plain_objects_in_a_pickle(protocol):
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    arrays = {
        **{"array": array, "fortran": np.asfortranarray(array), "big": array.astype(">i4"), "scalar": np.float32(2.5)},
        **{"strings": np.array(["ab", "c"]), "objects": np.array(["ab", None, 3], dtype=object)},
    }
    plain = {"set": {1, "a", (1, 2)}, "frozen": frozenset([3]), "bytes": [b"", b"\xff\x00"], ("t", 1): -(2**80)}
    dicts = {"counter": collections.Counter("aab"), "default": collections.defaultdict(list, {"a": [1]})}
    if protocol > 1:  # older ones pickle it by other means
        dicts |= {"namespace": argparse.Namespace(rate=0.5), "empty": argparse.Namespace()}
    read = load_pickle(pickle.dumps({"again": array, **arrays, **plain, **dicts}, protocol))
    for name, expected in arrays.items():
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected)
    assert read["fortran"].flags.f_contiguous
    assert isinstance(read["scalar"], np.float32)
    assert read["again"] is read["array"]
    assert read["array"].flags.writeable
    assert {name: read[name] for name in plain} == plain
    for name, expected in dicts.items():
        assert read[name] == (expected if isinstance(expected, dict) else vars(expected))
        assert type(read[name]) is dict or name == "empty"


def test_python_2_array_needs_latin1():
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n(I1\n(I2\ntp6\n"
        b"cnumpy\ndtype\np7\n(S'f4'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00 \\xc0'\np13\ntp14\nb."
    )
    assert load_pickle(data, encoding="latin1").tolist() == [1.0, -2.5]
    with pytest.raises(TorchFileError, match="UnicodeDecodeError"):
        load_pickle(data)


ZEROS = call("_codecs", "encode", "\0" * 8, "latin1")
BAD_ARRAYS = [("f4", shape, ZEROS) for shape in ((3,), (-2,), (2**70,), 2)]
BAD_ARRAYS += [("O8", (3,), [1, 2]), ("f4,i4", (1,), ZEROS), ("V8", (1,), ZEROS), ("f4", (2,), 8)]


@pytest.mark.parametrize(("dtype", "shape", "data"), BAD_ARRAYS)
def test_numpy_array_with_a_state_that_does_not_fit(dtype, shape, data):
    described = call("numpy", "dtype", dtype, False, True) + value((3, "<", None, None, None, -1, -1, 0)) + b"b"
    array = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), (0,), "b")
    with pytest.raises(TorchFileError, match="<bytes>: "):
        load_pickle(program(array + value((1, shape, described, False, data)) + b"b"))


LYING_SIZES = [(2**30, 2**30, "more than"), (24, 2**30, "stored"), (20, 20, "holds 20"), (40, 40, "damaged")]


@pytest.mark.parametrize(("packed", "size", "message"), LYING_SIZES)
def test_archive_whose_entry_sizes_lie(packed, size, message, tmp_path):
    path = zip_file(tmp_path / "a.pt", tensor(storage(count=max(size // 4, 6))), {"0": DATA})
    data = bytearray(path.read_bytes())
    record = data.rindex(b"PK\x01\x02", 0, data.rindex(b"model_1/data/0"))
    data[record + 20 : record + 28] = struct.pack("<II", packed, size)  # as the archive's directory states them
    path.write_bytes(data)
    with pytest.raises(TorchFileError, match=message):
        load(path)


VIEWS = [("v", 4, 3), ("v", -1, 2), ("v", 0, 7), ("v", 0), ("v", "0", 1), 5]
BAD_FILES = [
    (zip_file, {"storages": {}}, "no entry 'model_1/data/0'"),
    *[(zip_file, {"storages": {"0": (DATA * 2)[:n]}}, f"holds {n} bytes, expected 24") for n in (23, 25)],
    (zip_file, {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    (zip_file, {"entries": {"byteorder": "middle"}}, "byteorder is 'middle'"),
    (zip_file, {"entries": {"constants.pkl": ""}}, "TorchScript"),
    (zip_file, {"body": storage("FloatStorage", "0", 6, ("v", 0, 1))}, "damaged"),
    (zip_file, {"body": storage("FloatStorage", "../data.pkl", 6)}, "no entry"),
    (legacy_file, {"magic": 12}, "magic number"),
    *[(legacy_file, {"keys": keys}, "not those of its tensors") for keys in (["0", "1"], [], 3)],
    *[(legacy_file, {"storages": {"0": (count, DATA)}}, f"as {count} elements") for count in (5, -6)],
    *[(legacy_file, {"body": tensor(storage("FloatStorage", "0", 6, v), 0, (), ())}, "outside|damaged") for v in VIEWS],
    (legacy_file, {"body": tensor(storage(count=2**40))}, "in a file of"),
    (legacy_file, {"body": value(tuple(storage(key=str(key), count=60) for key in range(10)))}, "in a file of"),
]


@pytest.mark.parametrize(("write", "change", "message"), BAD_FILES)
def test_inconsistent_file(write, change, message, tmp_path):
    stored = {"0": DATA} if write is zip_file else {"0": (6, DATA)}
    path = write(tmp_path / "a.pt", **{"body": tensor(), "storages": stored, **change})
    with pytest.raises(TorchFileError, match=message):
        load(path)


def test_what_is_not_a_torch_file(tmp_path):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("weights: none\n" * 100)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("model/weights.json", "{}")
    zip_file(tmp_path / "changed.pt", tensor(), {"0": DATA})
    (tmp_path / "changed.pt").write_bytes((tmp_path / "changed.pt").read_bytes().replace(DATA, DATA[:-1] + b"\x41"))
    messages = {"absent.pt": "No such file", "": "directory", "empty.pt": "EOF", "text.pt": "not a torch file"}
    for name, message in {**messages, "other.pt": r"no data\.pkl", "changed.pt": "CRC"}.items():
        with pytest.raises(TorchFileError, match=message) as caught:
            load(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(TorchFileError, match="No such file"):
        load_pickle(tmp_path / "absent.pkl")


def saved_tree():
    arrays = {
        **{dtype: np.array([[0, 1, 1]]).astype(getattr(ml_dtypes, dtype, dtype)) for dtype in KINDS.values()},
        **{"transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T, "strided": np.arange(6)[::2]},
        **{"zero-dimensional": np.array(3.5), "scalar": np.int64(0), "empty": np.ones((2, 0, 3), np.float32)},
        **{"big-endian": np.arange(3, dtype=">i4")},
    }
    plain = {"text": "été\n", "ints": (0, -1, 255, 2**40, -(2**70)), "list": [1e300, None, True, False]}
    return {"arrays": arrays, "plain": plain, "containers": [{}, [], ()], 7: "seven"}


def test_save_and_load_and_equal_bytes_for_equal_trees(tmp_path):
    tree = saved_tree()
    save(tmp_path / "a.pt", tree)
    read = load(tmp_path / "a.pt")
    assert list(read) == list(tree)
    assert {name: read[name] for name in ("plain", "containers", 7)} == {k: v for k, v in tree.items() if k != "arrays"}
    assert list(read["arrays"]) == list(tree["arrays"])
    for name, expected in tree["arrays"].items():
        got = read["arrays"][name]
        assert isinstance(got, np.ndarray)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype.newbyteorder("="))
        np.testing.assert_array_equal(got, expected)
    save(tmp_path / "other.pth.tar", saved_tree())
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other.pth.tar").read_bytes()
    save(tmp_path / "a.pt", np.arange(3))
    assert load(tmp_path / "a.pt").tolist() == [0, 1, 2]
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "other.pth.tar"]


def test_saved_pickle_keeps_to_what_weights_only_loading_allows(tmp_path):
    """The opcodes and globals that pytorch/pytorch, torch/_weights_only_unpickler.py (2.13), takes from any file."""
    save(tmp_path / "a.pt", saved_tree())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert {"archive/version", "archive/byteorder", "archive/data/0"} <= set(archive.namelist())
        opcodes = [(code.name, argument) for code, argument, _ in pickletools.genops(archive.read("archive/data.pkl"))]
    allowed = "PROTO MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINPUT GLOBAL "
    allowed += "REDUCE BINPERSID TUPLE EMPTY_TUPLE EMPTY_LIST APPENDS EMPTY_DICT SETITEMS"
    assert {name for name, _ in opcodes} <= set(allowed.split())
    asked = {argument for name, argument in opcodes if name == "GLOBAL" and "Storage" not in argument}
    assert asked == {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}


UNSUPPORTED = [
    *[({"a": [0, item]}, r"object\['a'\]\[1\]: a (set|bytes)") for item in ({1, 2}, b"bytes")],
    *[({"a": {"b": np.array([item])}}, r"object\['a'\]\['b'\]: an array of") for item in ("x", None, np.uint16(3))],
    *[({"a": {key: 3}}, r"object\['a'\]: its key") for key in ((1, 2), np.int64(1), None)],
]


@pytest.mark.parametrize(("tree", "place"), UNSUPPORTED)
def test_failed_save_names_the_place_and_leaves_nothing_behind(tree, place, tmp_path):
    with pytest.raises(TypeError, match=place):
        save(tmp_path / "a.pt", tree)
    (tmp_path / "a.pt").mkdir()
    with pytest.raises(OSError, match="directory"):
        save(tmp_path / "a.pt", {"w": np.ones(2)})
    assert os.listdir(tmp_path) == ["a.pt"]

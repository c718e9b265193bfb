"""Files that would take all memory, all time or the process itself: each is an error of one line.

They are read in a process of its own that has little memory and time, as some of them end a careless reader's process.
"""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from vlm_jax.interop import paddle_files, torch_files

FIXTURES = Path(__file__).parent / "fixtures"
MEBIBYTES, SECONDS = 512, 20
READER = f"""
import json, random, resource, signal, sys
from vlm_jax.errors import UserError
from vlm_jax.interop import paddle_files, torch_files

held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + {MEBIBYTES << 20},) * 2)
readers = {{".pt": torch_files.load, ".pdparams": paddle_files.load, ".pkl": torch_files.load_pickle}}
for path, mutations in json.loads(sys.argv[1]):
    read = readers[path[path.rindex("."):]]
    whole = open(path, "rb").read()
    for seed in range(max(1, mutations)):
        draw, content = random.Random(seed), bytearray(whole)
        for _ in range(draw.randint(1, 4) if mutations else 0):
            content[draw.randrange(len(content))] = draw.choice((0, 1, 255, draw.randrange(256)))
        if mutations:
            open(path, "wb").write(content)
        signal.alarm({SECONDS})
        try:
            read(path)
            print("read", path, flush=True)
        except UserError as error:
            assert "\\n" not in str(error) and len(str(error)) < 500, str(error)
            assert "MemoryError" not in str(error), str(error)
            print(type(error).__name__, str(error), flush=True)
"""


def said(*paths, mutations=0):
    """Return what the reader printed, one line per file and mutation; it has to reach its end."""
    arguments = json.dumps([(str(path), mutations) for path in paths])
    done = subprocess.run([sys.executable, "-c", READER, arguments], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout[-300:], done.stderr[-1000:])
    return done.stdout.splitlines()


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def value(item):
    return pickle.dumps(item, 2)[2:-1]


OBJECTS = named("numpy", "dtype") + value(("O8", False, True)) + b"R"
OBJECTS += value((3, "|", None, None, None, -1, -1, 63)) + b"bq\x02"
EMPTY_ARRAY = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
WRAP = b"q\x05]h\x05aq\x060h\x03h\x04R(K\x01K\x01\x85h\x02\x89h\x06tb"  # memo 3 and 4: _reconstruct, its arguments
STORAGE = b"(X\x07\x00\x00\x00storage" + named("torch", "FloatStorage") + value("0") + value("cpu") + b"K\x01tQ"
TENSOR = named("torch._utils", "_rebuild_tensor_v2")
NESTED_ARRAYS = (
    OBJECTS
    + b"0"
    + named("numpy.core.multiarray", "_reconstruct")
    + b"q\x030"
    + named("numpy", "ndarray")
    + b"K\x00\x85C\x01b\x87q\x040N"
    + WRAP * 15_000
)
LONG_TEXT = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
PROGRAMS = {
    "deep tuple in a message": b")" + b"\x85" * 400_000 + b"Q",
    "deep tuple for a dtype": TENSOR + b"0" + named("torch._utils", "_rebuild_tensor_v3") + b"(" + STORAGE
    + b"K\x00))\x89}" + b")" + b"\x85" * 400_000 + b"tR",
    "deep tuple as content": b")" + b"\x85" * 400_000,
    "deep lists": b"]" * 100_000 + b"a" * 99_999,
    "deep object arrays": NESTED_ARRAYS,
    "a list that holds itself": b"]q\x00h\x00a",
    "shared tuples for a device": named("torch", "device") + b"X\x00\x00\x00\x00)" + b"q\x010h\x01h\x01\x86" * 60
    + b"\x86R",
    "shared tuples": b")" + b"q\x01h\x01\x86" * 60,
    "shared tuples in a set": named("builtins", "frozenset") + b"](" + b")" + b"q\x01h\x01\x86" * 60 + b"e\x85R",
    "shared lists": b"]" + b"q\x01]q\x020h\x020h\x02h\x01ah\x01a" * 60,
    "string doubling": named("torch", "device") + b"q\xf00" + value("aaaa")
    + b"q\xf10h\xf0h\xf1h\xf1\x86Rq\xf1" * 40,
    "false length of text": b"\x8d" + struct.pack("<Q", 2**32) + b"a",
    "false length of bytes": b"\x8e" + struct.pack("<Q", 2**31) + b"a",
    "false length of a bytearray": b"\x96" + struct.pack("<Q", 2**32) + b"a",
    "false length of a frame": b"\x95" + struct.pack("<Q", 2**32) + b"a",
    "false length of a number": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a",
    "copies of a text": LONG_TEXT + b"q\x000" + named("_codecs", "encode") + b"q\x010](" + b"h\x01h\x00\x85R" * 20_000
    + b"e",
    "copies of a set": b"\x8fq\x000](" + b"".join(b"J" + struct.pack("<i", n) for n in range(20_000)) + b"eq\x000"
    + named("builtins", "set") + b"q\x010](" + b"h\x01h\x00\x85R" * 20_000 + b"e",
    "a set many times": b"\x8fq\x000](" + b"".join(b"J" + struct.pack("<i", n) for n in range(50_000)) + b"eq\x01"
    + b"](" + b"h\x01" * 100_000 + b"e",
    "endless dimensions": TENSOR + b"(" + STORAGE + b"K\x00(" + value(2**60000) + b"q\x00" + b"h\x00" * 50_000
    + b"tq\x01h\x01\x89}tR",
    "expanded tensor": TENSOR + b"(" + STORAGE + b"K\x00" + value((2**20, 2**20)) + value((0, 0)) + b"\x89}tR",
    "many expanded tensors": TENSOR + b"q\xf00" + STORAGE + b"q\xf10]("
    + (b"h\xf0(h\xf1K\x00" + value((2**16,)) + value((0,)) + b"\x89}tR") * 1000 + b"e",
}  # fmt: skip


def write(folder, program):
    """Write a pickle in every form that is read."""
    program = b"\x80\x02" + program + b"."
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", np.float32([1]).tobytes())
    head = [pickle.dumps(item, 2) for item in (torch_files._LEGACY_MAGIC, 1001, {})]
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 1) + np.float32([1]).tobytes()
    (folder / "legacy.pt").write_bytes(b"".join(head) + program + tail)
    (folder / "plain.pdparams").write_bytes(program)
    return [folder / name for name in ("zip.pt", "legacy.pt", "plain.pdparams")]


def test_each_is_an_error_of_one_line(tmp_path):
    paths = []
    for name, program in PROGRAMS.items():
        (tmp_path / name).mkdir()
        paths += write(tmp_path / name, program)
    for line, path in zip(said(*paths), paths, strict=True):
        kinds = ("PaddleFileError",) if path.suffix == ".pdparams" else ("TorchFileError", "UnsafePickleError")
        assert line.startswith(tuple(f"{kind} {path}: " for kind in kinds)), line


def test_entries_that_lie_over_each_other(tmp_path):
    """Every entry of the archive's directory names the same bytes, which are read for each of them."""
    content, count = np.zeros(100_000, np.float32), 4000
    size = value(content.size)
    ids = [STORAGE.replace(value("0"), value(str(key))).replace(b"K\x01t", size + b"t") for key in range(count)]
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02(" + b"".join(ids) + b"t.")
        archive.writestr("a/data/0", content.tobytes())
        whole = archive.NameToInfo["a/data/0"]
        for key in range(1, count):
            info = zipfile.ZipInfo(f"a/data/{key}")
            info.file_size = info.compress_size = whole.file_size
            info.CRC, info.header_offset = whole.CRC, whole.header_offset
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    (line,) = said(tmp_path / "a.pt")
    assert line.startswith("TorchFileError")


def test_mutations_of_small_files(tmp_path):
    rng = np.random.default_rng(0)
    tree = {"epoch": 3, "state_dict": {name: rng.normal(size=(2, 3)).astype(np.float32) for name in "abc"}}
    torch_files.save(tmp_path / "saved.pt", tree)
    paddle_files.save(tmp_path / "saved.pdparams", tree["state_dict"])
    names = ["saved.pt", "saved.pdparams"]
    for form in ("zip_format.pt", "legacy_format.pt"):
        (tmp_path / form).write_bytes((FIXTURES / form).read_bytes())
        names.append(form)
    for protocol in (2, 5):
        objects = {"array": rng.normal(size=3), "objects": np.array(["a", (1, 2)], dtype=object), "set": {1, 2}}
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps(objects, protocol))
        names.append(f"{protocol}.pkl")
    lines = said(*[tmp_path / name for name in names], mutations=250)
    kinds = [line.split()[0] for line in lines]
    assert len(kinds) == 250 * len(names)
    assert 100 < kinds.count("read") < 1200

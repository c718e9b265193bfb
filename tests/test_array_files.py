"""Untrusted `.npy` and `.npz` files: a false or damaged one raises an error and takes no memory."""

import io
import struct
import zipfile

import numpy as np
import pytest

from vlm_jax.array_files import load_array, read_member


def npy(array, **header):
    """Return the bytes of an `.npy` file, with the given entries of the header in place of the true ones."""
    stream = io.BytesIO()
    stated = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    np.lib.format.write_array_header_1_0(stream, stated)
    return stream.getvalue() + array.tobytes()


ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
BAD = {
    "a shape that is too large": (npy(ROWS, shape=(1 << 40, 3)), "claims float32"),
    "a shape that overflows": (npy(ROWS, shape=(1 << 62, 1 << 62)), "claims float32"),
    "a negative shape": (npy(ROWS, shape=(-2, 3)), "claims float32"),
    "elements of no size": (npy(ROWS, shape=(1 << 40,), descr="|S0"), "expected real numbers"),
    "a type that is too wide": (npy(ROWS, descr="<f16"), "claims"),
    "objects": (npy(np.zeros(2), descr="|O"), "holds object, expected real numbers"),
    "texts": (npy(np.array(["ab"])), "expected real numbers"),
    "complex numbers": (npy(np.ones(2, complex)), "holds complex128, expected real numbers"),
    "times": (npy(np.array([0], "M8[s]")), "expected real numbers"),
    "records": (npy(np.zeros(2, [("a", "<f4")]), descr=[("a", "<f4")]), "expected real numbers"),
    "a single number": (npy(np.float32(1)), "single number"),
    "a cut header": (npy(ROWS)[:40], ""),
    "a cut array": (npy(ROWS)[:-1], "claims"),
    "nested brackets": (npy(ROWS).replace(b"(2, 3)", b"((((("), ""),
    "nothing": (b"", ""),
}


def zipped(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("features.npy", content)
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("name", BAD)
def test_what_a_file_claims_is_checked(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_array(path)
    assert message in str(caught.value)
    with zipped(tmp_path / "a.npz", content) as archive, pytest.raises(ValueError) as caught:
        read_member(archive, "features.npy")
    assert message in str(caught.value)


def test_whole_files_are_read(tmp_path):
    for array in (ROWS, np.asfortranarray(ROWS), np.zeros((0, 3), np.float16), np.arange(3, dtype=">i4")):
        np.save(tmp_path / "a.npy", array)
        np.savez_compressed(tmp_path / "a.npz", features=array)
        with zipfile.ZipFile(tmp_path / "a.npz") as archive:
            for found in (load_array(tmp_path / "a.npy"), read_member(archive, "features.npy")):
                assert (found.dtype, found.flags.f_contiguous) == (array.dtype, array.flags.f_contiguous)
                np.testing.assert_array_equal(found, array)


def test_a_member_that_unpacks_enormously(tmp_path):
    archive = zipped(tmp_path / "a.npz", bytes(80 << 20), zipfile.ZIP_DEFLATED)
    with archive, pytest.raises(ValueError, match=r"bytes claim to unpack to 83886080"):
        read_member(archive, "features.npy")


def test_flipped_bits_are_an_error_or_seen_by_the_checksum(tmp_path):
    stream = io.BytesIO()
    np.savez_compressed(stream, features=np.random.default_rng(0).normal(size=(20, 3)))
    whole, read = stream.getvalue(), 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        try:
            with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
                names = archive.namelist()
                assert read_member(archive, "features.npy").shape == (20, 3) if "features.npy" in names else True
                read += 1
        except (ValueError, zipfile.BadZipFile, NotImplementedError, OSError):
            continue
    assert 0 < read < len(whole) // 6


def test_a_member_whose_sizes_lie(tmp_path):
    zipped(tmp_path / "a.npz", npy(ROWS, shape=(1 << 24, 3))).close()
    content = bytearray((tmp_path / "a.npz").read_bytes())
    record = content.rindex(b"PK\x01\x02")
    content[record + 20 : record + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    with zipfile.ZipFile(io.BytesIO(content)) as archive, pytest.raises(ValueError):
        read_member(archive, "features.npy")

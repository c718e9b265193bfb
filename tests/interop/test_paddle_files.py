"""Paddle's files: what is read, what is refused."""

import pickle

import numpy as np
import pytest

from vlm_jax.interop.paddle_files import PaddleFileError, load, save

ARRAYS = {"v2s_lt_weights": np.arange(6, dtype=np.float32).reshape(2, 3), "learning_rate_0": np.float32([0.1])}


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_by_name_without_metadata(tmp_path, protocol):
    extra = {"StructuredToParameterName@@": {"v2s": "v2s_lt_weights"}, "epoch": 3, 7: np.ones(2)}
    path = tmp_path / "TALL.pdparams"
    path.write_bytes(pickle.dumps({**ARRAYS, **extra}, protocol))
    found = load(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def test_names_that_python_2_wrote(tmp_path):
    path = tmp_path / "old.pdparams"
    path.write_bytes(pickle.dumps({b"w": np.ones(2, np.float32)}))
    assert list(load(path)) == ["w"]


def test_round_trip(tmp_path):
    save(tmp_path / "made.pdparams", ARRAYS)
    found = load(tmp_path / "made.pdparams")
    assert [path.name for path in tmp_path.iterdir()] == ["made.pdparams"]
    assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        {"w": Hostile(open, "ran", "w")},
        Hostile(eval, "open('ran', 'w')"),
        {"w": np.ones(2), "x": Hostile(getattr, "", "join")},
        {"w": Hostile(np.load, "ran")},
    ],
)
def test_nothing_is_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.pdparams").write_bytes(pickle.dumps(content))
    with pytest.raises(PaddleFileError, match=r"^hostile.pdparams: .* not on the list of safe names") as said:
        load("hostile.pdparams")
    assert "\n" not in str(said.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(4) + b"\x00" * 60, "variables without names"),
        (b"\x80\x02}", "damaged, truncated or not a .pdparams file"),
        (b"text", "damaged, truncated or not a .pdparams file"),
        (pickle.dumps([1, 2]), "expected a pickled dict of arrays, found a list"),
        (pickle.dumps({"a": 1}), "a pickled dict without arrays"),
        (None, "No such file"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "other.pdparams"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PaddleFileError) as said:
        load(path)
    assert str(said.value).startswith(f"{path}: ")
    assert message in str(said.value)
    assert "\n" not in str(said.value)


def test_a_folder_of_variables(tmp_path):
    with pytest.raises(PaddleFileError, match="one file per variable"):
        load(tmp_path)

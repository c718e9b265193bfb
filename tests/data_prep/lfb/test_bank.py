"""Conversion of the reference's bank files: both types, both forms of a second, and files that are no bank."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.commands import run_command
from data_prep.lfb import bank as bank_command
from vlm_jax.errors import DataError
from vlm_jax.interop import torch_files
from vlm_jax.systems.lfb.bank import Bank
from vlm_jax.systems.lfb.reference_bank import read_reference_bank

GOLDEN = Path(__file__).parents[2] / "golden" / "lfb" / "lfb_infer_bank.pkl"


def convert(*words):
    run_command(["bank", *map(str, words)], "", lambda words: None, bank_command.add_command)


def assert_equal_content(ours, expected):
    """Compare two trees of the reference's form: order, types and values."""
    assert list(ours) == list(expected)
    for video in expected:
        assert sorted(ours[video]) == sorted(expected[video])
        for second, features in expected[video].items():
            assert type(ours[video][second]) is list
            assert [each.dtype for each in ours[video][second]] == [each.dtype for each in features]
            np.testing.assert_array_equal(ours[video][second], features)


def test_a_file_of_the_reference_and_back(tmp_path, capsys):
    convert("--source", GOLDEN, "--output", tmp_path / "bank")
    assert capsys.readouterr().out == f"{tmp_path / 'bank'}: 3 videos, 5 seconds, 9 features of 12 float16 numbers\n"
    convert("--source", tmp_path / "bank", "--output", tmp_path / "new" / "back.pkl", "--reverse")
    assert capsys.readouterr().out.endswith("back.pkl: 3 videos, 5 seconds, 9 features of 12 float16 numbers\n")
    assert_equal_content(torch_files.load(tmp_path / "new" / "back.pkl"), torch_files.load(GOLDEN))
    with pytest.raises(DataError, match=r"--output: .*bank holds a bank already"):
        convert("--source", GOLDEN, "--output", tmp_path / "bank")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_type_can_be_changed(tmp_path, dtype):
    other = {"float16": "float32", "float32": "float16"}[dtype]
    features = np.random.default_rng(0).normal(size=(3, 4)).astype(other)
    torch_files.save(tmp_path / "lfb_val.pkl", {"v": {902: list(features)}})
    convert("--source", tmp_path / "lfb_val.pkl", "--output", tmp_path / "bank", "--dtype", dtype)
    found = Bank.open([tmp_path / "bank"]).sample("v", 902, 1, None)[0]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, features.astype(dtype))
    convert("--source", tmp_path / "bank", "--output", tmp_path / "back.pkl", "--reverse", "--dtype", other)
    assert torch_files.load(tmp_path / "back.pkl")["v"][902][0].dtype == other


def test_a_second_may_be_one_tensor_and_one_without_features_is_left_out(tmp_path):
    stacked = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"v": {902: stacked, 903: [], 904: list(stacked[:1])}, "w": {}}
    torch_files.save(tmp_path / "lfb.pkl", content)
    found = read_reference_bank(tmp_path / "lfb.pkl")
    assert (found.videos, found.seconds.tolist(), found.counts.tolist()) == (["v", "v"], [902, 904], [2, 1])
    np.testing.assert_array_equal(found.features, stacked[[0, 1, 0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a bank; expected a dict of videos, each a dict of seconds"),
        ({"v": [np.zeros(3, np.float32)]}, "not a bank; expected a dict of videos"),
        ({"v": {"902": []}}, r"its keys are such as \('v', '902'\)"),
        ({7: {902: []}}, r"its keys are such as \(7, 902\)"),
        ({"v": {902: []}}, "has no features"),
        ({}, "has no features"),
        ({"v": {902: "text"}}, "video 'v', second 902: found a str, expected a list of features"),
        ({"v": {902: [1.0]}}, "video 'v', second 902: found a list, expected a list of features"),
        ({"v": {902: [np.zeros(3)]}}, r"features are float64 \[3\], expected float16 or float32 \[C\]"),
        ({"v": {902: [np.zeros((3, 1), np.float32)]}}, r"features are float32 \[3, 1\], expected"),
        (
            {"v": {902: [np.zeros(3, np.float32)], 903: [np.zeros(2, np.float32)]}},
            r"second 903: a feature is float32 \[2\], expected float32 \[3\]",
        ),
        ({"v": {902: [np.full(3, np.nan, np.float32)]}}, "of video 'v', second 902, is not a finite float32 number"),
        ({"v": {902: [np.full(3, 1e6, np.float32)]}}, "of video 'v', second 902, is not a finite float16 number"),
    ],
)
def test_files_that_are_no_bank(tmp_path, content, message):
    torch_files.save(tmp_path / "lfb.pkl", content)
    words = ["--dtype", "float16"] if "float16 number" in message else []
    with pytest.raises(DataError, match=message) as caught:
        convert("--source", tmp_path / "lfb.pkl", "--output", tmp_path / "bank", *words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bank").exists()


def test_features_that_the_type_of_the_file_cannot_hold(tmp_path):
    torch_files.save(tmp_path / "lfb.pkl", {"v": {902: [np.full(3, 1e6, np.float32)]}})
    convert("--source", tmp_path / "lfb.pkl", "--output", tmp_path / "bank")
    with pytest.raises(DataError, match="of video 'v', second 902, is not a finite float16 number"):
        convert("--source", tmp_path / "bank", "--output", tmp_path / "back.pkl", "--reverse", "--dtype", "float16")
    assert not (tmp_path / "back.pkl").exists()


def test_the_program_lists_the_command(capsys, monkeypatch):
    from data_prep.lfb import __main__ as program

    monkeypatch.setattr("sys.argv", ["data_prep.lfb", "bank", "--help"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--reverse" in capsys.readouterr().out

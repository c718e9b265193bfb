"""Tests of the search for a golden case's checker."""

import json

import cases
import lfb_tolerance
import numpy as np
import pytest
import snps3_tolerance
import test_golden


def test_a_case_without_a_checker_fails(tmp_path):
    path = tmp_path / "milnce" / "surprise.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"system": "milnce", "case": "surprise", "tolerance": {"exact": True}}))
    assert cases.find(tmp_path) == [path]
    with pytest.raises(AssertionError, match="no checker for the case 'surprise' of 'milnce'"):
        test_golden.check(path, "float32")


def test_the_longest_name_wins():
    checkers = {"s3d_eval": 1, "s3d_eval_odd": 2}
    found = [cases.checker_for(checkers, name) for name in ("s3d_eval", "s3d_eval_odd_2", "s3d_eval_b", "s3d")]
    assert found == [1, 2, 1, None]


def lfb_case(tmp_path, **tolerance):
    path = tmp_path / "lfb" / "made.json"
    path.parent.mkdir()
    whole = {"rtol": 0, "atol": 0.1, "scale": "max_abs", "overrides": {"out/skipped*": {"skip": "ties"}}, **tolerance}
    path.write_text(json.dumps({"system": "lfb", "case": "made", "tolerance": whole}))
    arrays = {"out/a": np.array([1.0, 10.0, np.nan]), "out/skipped/b": np.zeros(2), "out/ids": np.array([1, 2])}
    np.savez(path.with_suffix(".npz"), **arrays)
    return cases.Case(path)


def test_a_tolerance_relative_to_the_largest_entry(tmp_path):
    case = lfb_case(tmp_path)
    lfb_tolerance.check(case, {"out/a": np.array([1.9, 10.9, np.nan]), "out/skipped/b": np.ones(2)})
    for wrong in ({"out/a": [2.1, 10, np.nan]}, {"out/a": [1, 10, 0]}, {"out/ids": [1, 3]}, {"out/a": [1, 10]}):
        with pytest.raises(AssertionError):
            lfb_tolerance.check(case, wrong)
    with pytest.raises(KeyError):
        lfb_tolerance.check(case, {"out/skipped/unknown": np.ones(2)})


def test_the_first_matching_pattern_and_the_block_of_float64(tmp_path):
    sharp = {"rtol": 0, "atol": 1e-6, "scale": "none"}
    case = lfb_case(
        tmp_path, overrides={"out/*": sharp, "out/a": {**sharp, "atol": 9}}, float64={**sharp, "overrides": {}}
    )
    assert lfb_tolerance.rule_for(case, "out/a") == sharp
    assert lfb_tolerance.rule_for(case, "out/a", "float64") == {**sharp, "overrides": {}}
    assert test_golden.has_float64(case.path)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"exact": True}, {"loss/a": (0, 0), "out/a": (0, 0)}),
        ({"rtol": 0.1, "atol": 0.2}, {"loss/a": (0.1, 0.2), "grad/a": (0.1, 0.2), "out/a": (0.1, 0.2)}),
        ({"rtol": 0.1}, {"out/a": (0.1, 0)}),
        (
            {"loss_rtol": 0.1, "grad_rtol": 0.2, "grad_atol": 0.3},
            {"loss/a": (0.1, 0), "grad/a": (0.2, 0.3), "out/a": (1e-4, 1e-5)},
        ),
        ({"rtol": 0.1, "gradnorm_rtol": 0.2}, {"gradnorm/a": (0.2, 0), "grad/a": (0.1, 0)}),
    ],
)
def test_the_tolerance_of_a_kind_of_numbers(tmp_path, stated, expected):
    path = tmp_path / "snps3" / "made.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"system": "snps3", "case": "made", "tolerance": stated}))
    np.savez(path.with_suffix(".npz"), **{name: np.array([1.0, 2.0]) for name in expected})
    case = cases.Case(path)
    for name, (rtol, atol) in expected.items():
        assert snps3_tolerance.rule_for(case, name) == (rtol, atol)
        snps3_tolerance.check(case, {name: np.array([1.0, 2.0])})
        with pytest.raises(AssertionError):
            snps3_tolerance.check(case, {name: np.array([1.0, 2 + 2.1 * rtol + 1.1 * atol + 1e-9])})
        with pytest.raises(AssertionError):
            snps3_tolerance.check(case, {name: np.array([1.0])})

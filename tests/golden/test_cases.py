"""Tests of the search for a golden case's checker."""

import json

import cases
import pytest
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

"""Tests of every golden case of a folder: pytest tests/golden [--golden DIR]. A case without a checker fails."""

import importlib
import importlib.util

import cases
import pytest


def checkers(system):
    """Return the checkers of `check_SYSTEM.py` by case, none if there is no such file."""
    name = f"check_{system}"
    return importlib.import_module(name).CHECKERS if importlib.util.find_spec(name) else {}


def has_float64(path):
    """Return whether a case's manifest has a tolerance for float64."""
    return not {"float64", "float64_run"}.isdisjoint(cases.Case(path).tolerance)


def pytest_generate_tests(metafunc):
    paths = cases.find(metafunc.config.getoption("--golden"))
    assert paths, f"no golden case under {metafunc.config.getoption('--golden')}"
    sharp, twins = [], []
    for path in paths:
        name = f"{path.parent.name}/{path.stem}"
        sharp.append(pytest.param(path, id=name))
        if has_float64(path):
            twins.append(pytest.param(path, id=name))
    metafunc.parametrize("path", sharp if metafunc.function is test_golden else twins)


def check(path, precision):
    case = cases.Case(path)
    checker = cases.checker_for(checkers(case.manifest["system"]), case.manifest["case"])
    assert checker, f"{path}: no checker for the case {case.manifest['case']!r} of {case.manifest['system']!r}"
    checker(case, precision)


def test_golden(path):
    """Check in float64 where the manifest gives a tolerance for it, else in float32."""
    check(path, "float64" if has_float64(path) else "float32")


@pytest.mark.slow
def test_golden_in_float32(path):
    """Check in float32 the cases that `test_golden` checks in float64."""
    check(path, "float32")

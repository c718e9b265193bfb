"""Comparison with the golden cases of lfb, whose tolerances are given by patterns of names."""

import fnmatch

import numpy as np


def rule_for(case, name, precision="float32"):
    """Return the tolerance of an array: that of the first pattern of `overrides` that matches, else the case's own."""
    rules = case.tolerance
    if precision == "float64" and "float64" in rules:
        rules = rules["float64"]
    matching = (rule for pattern, rule in rules["overrides"].items() if fnmatch.fnmatchcase(name, pattern))
    return next(matching, rules)


def check(case, found, precision="float32"):
    """Compare arrays with those of a case: |ours - reference| <= atol * S + rtol * |reference|.

    S is the reference's largest magnitude if `scale` is 'max_abs', else 1. Integers, booleans and bytes are exact, and
    NaN equals NaN. An array whose rule is `skip` must be one of the case, but its values are not compared.

    Args:
      case: Golden case.
      found: Our arrays, by the case's names.
      precision: 'float32' or 'float64'; the manifest's `float64` block applies to the latter.
    """
    assert found, "nothing to compare"
    for name, ours in found.items():
        rule, ours, reference = rule_for(case, name, precision), np.asarray(ours), case[name]
        if "skip" in rule:
            continue
        assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, expected {reference.shape}"
        if reference.dtype.kind in "biuSU":
            np.testing.assert_array_equal(ours, reference, err_msg=name)
            continue
        scale = np.nanmax(np.abs(reference), initial=0.0) if rule["scale"] == "max_abs" else 1.0
        np.testing.assert_allclose(
            np.asarray(ours, np.float64),
            np.asarray(reference, np.float64),
            rtol=rule["rtol"],
            atol=rule["atol"] * scale,
            equal_nan=True,
            err_msg=name,
        )

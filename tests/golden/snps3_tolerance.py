"""Comparison with the golden cases of snps3, whose tolerances are given by kinds of numbers."""

import numpy as np

UNSTATED = (1e-4, 1e-5)
"""Relative and absolute tolerance of outputs where a manifest gives tolerances of losses only."""


def rule_for(case, name):
    """Return the relative and the absolute tolerance of an array; both 0 in an exact case.

    The kind is the name's first part: `loss`, `grad`, `gradnorm` and others. A manifest may have `KIND_rtol` and
    `KIND_atol`; `rtol` and `atol` hold for the rest, and `UNSTATED` where there are none.
    """
    stated, kind = case.tolerance, name.split("/")[0]
    if stated.get("exact"):
        return 0.0, 0.0
    general = (stated["rtol"], stated.get("atol", 0.0)) if "rtol" in stated else UNSTATED
    if f"{kind}_rtol" not in stated:
        return general
    return stated[f"{kind}_rtol"], stated.get(f"{kind}_atol", 0.0)


def check(case, found):
    """Compare arrays with those of a case by `rule_for`; integers are exact."""
    assert found, "nothing to compare"
    for name, ours in found.items():
        ours, reference = np.asarray(ours), case[name]
        assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, expected {reference.shape}"
        rtol, atol = (0, 0) if reference.dtype.kind in "biu" else rule_for(case, name)
        ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
        np.testing.assert_allclose(ours, reference, rtol=rtol, atol=atol, err_msg=name)

"""Precision in which golden checks run."""

import functools

import jax
import numpy as np


def precise(checker):
    """Return a checker that runs in the given precision, with full-precision products."""

    @functools.wraps(checker)
    def run(case, precision):
        with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
            checker(case, precision)

    return run


def wide(tree, precision):
    """Return a tree whose floats have the given precision."""
    return jax.tree.map(lambda x: np.asarray(x, precision) if np.asarray(x).dtype.kind == "f" else np.asarray(x), tree)

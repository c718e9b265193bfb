"""Choice between the two forms of an operation: the plain one for accelerators, and one written for CPUs.

XLA compiles or differentiates several operations of this package to code that is slow on CPUs. Each of them has a
second form for CPUs with the same values and gradients, up to rounding. This module alone decides which form runs.
"""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import jax

Function = TypeVar("Function", bound=Callable)

PLAIN = "plain"
CPU = "cpu"

_chosen = jax.make_user_context(default_value=None)


def use(form: str) -> contextlib.AbstractContextManager[None]:
    """Return a context manager in which every operation uses the given form, whatever the device.

    Functions that were jitted outside the context are traced again inside it.

    Raises:
      ValueError: If the form is neither `PLAIN` nor `CPU`.
    """
    if form not in (PLAIN, CPU):
        raise ValueError(f"form: expected {PLAIN!r} or {CPU!r}, found {form!r}")
    return _chosen(form)


def choose(*, plain: Function, cpu: Function) -> Function:
    """Return the function that suits the devices of this process."""
    form = _chosen.value or (CPU if jax.default_backend() == "cpu" else PLAIN)
    return cpu if form == CPU else plain

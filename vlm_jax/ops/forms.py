"""The choice between the two forms of an operation: plain for accelerators, and one written for CPUs.

Several operations of this package are slow on CPUs as XLA compiles or differentiates them. Each has a second form for
CPUs with the same values and gradients, up to rounding. This module alone decides which of the two runs.
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
    """Return a context manager in which every operation takes the given form, whatever the device.

    Functions that are jitted outside and called inside are traced again.

    Raises:
      ValueError: where the form is neither `PLAIN` nor `CPU`.
    """
    if form not in (PLAIN, CPU):
        raise ValueError(f"form: expected {PLAIN!r} or {CPU!r}, found {form!r}")
    return _chosen(form)


def choose(*, plain: Function, cpu: Function) -> Function:
    """Return the function that suits the devices of this process."""
    form = _chosen.value or (CPU if jax.default_backend() == "cpu" else PLAIN)
    return cpu if form == CPU else plain

"""Rules for config values that hold for every system, by key or pattern of keys."""

import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
"""Values that `jax_default_matmul_precision` accepts."""
TYPES = ("float16", "bfloat16", "float32", "float64")


class Rule(NamedTuple):
    """Rule for the values of some keys.

    Attributes:
      keys: Patterns such as 'schedule.warmup_*', separated by spaces.
      expected: Description of the possible values, for the error.
      holds: Function that returns whether a value is possible.
    """

    keys: str
    expected: str
    holds: Callable[[Any], bool]


def _number(low: float, high: float = math.inf, *, below: bool = False) -> Callable[[Any], bool]:
    """Return a check for a finite number from `low` to `high`; with `below`, `high` itself is excluded."""

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return low <= value and (value < high if below else value <= high)

    return holds


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_number(0), value))


def _size(value: Any) -> bool:
    """Return whether a value is finite and at least 0, or not a number at all."""
    return not isinstance(value, int | float) or isinstance(value, bool) or _number(0)(value)


def _group(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3 or not isinstance(value[0], str):
        return False
    return _is_expression(value[0]) and _numbers(value[1:])


def _is_expression(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return True


RULES = (
    Rule("batch_size batch_groups log_every evaluate.batch_size", "at least 1", _number(1)),
    Rule("checkpoint.keep data.streams data.block tile.*", "at least 1", _number(1)),
    Rule("steps epochs seed data.workers checkpoint.keep_best", "at least 0", _number(0)),
    Rule("checkpoint.every_* evaluate.every_*", "at least 0", _number(0)),
    Rule("schedule.warmup_steps schedule.warmup_epochs schedule.decay_steps", "at least 0", _number(0)),
    Rule("schedule.learning_rate schedule.final_learning_rate", "a finite rate of at least 0", _number(0)),
    Rule("schedule.reference_batch_size", "a batch size, or 0 to leave the rates as they are", _number(0)),
    Rule("schedule.warmup_start", "a number from 0 to 1", _number(0, 1)),
    Rule("schedule.decay_factor", "a finite number of at least 0", _number(0)),
    Rule("schedule.boundary_*", "a list of numbers of at least 0", _numbers),
    Rule("optimizer.b1 optimizer.b2 optimizer.momentum", "a number from 0 to less than 1", _number(0, 1, below=True)),
    Rule("optimizer.ema_decay", "a number from 0 to less than 1", _number(0, 1, below=True)),
    Rule("optimizer.epsilon optimizer.weight_decay optimizer.clip_norm", "a finite number of at least 0", _number(0)),
    Rule(
        "optimizer.groups",
        "a list of [expression, rate factor, weight decay]",
        lambda value: isinstance(value, list | tuple) and all(map(_group, value)),
    ),
    Rule("mesh.*", "at least 1, or -1 for all devices that are left", lambda value: value == -1 or _number(1)(value)),
    Rule("matmul_precision", f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS),
    Rule("model.dtype data.dtype", f"one of {', '.join(TYPES)}", lambda value: value in TYPES),
    Rule("model.* clips.* text.*", "at least 0", _size),
)


def broken_rule(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first key whose value is impossible, and the description of possible values; None if there is none.

    Args:
      values: Values by dotted key; missing keys break no rule.
    """
    for rule in RULES:
        for pattern in rule.keys.split():
            for key in fnmatch.filter(values, pattern):
                if not rule.holds(values[key]):
                    return key, rule.expected
    return None

"""Rules that map the names of a reference checkpoint to the paths of Flax variables, and back.

A source name is dotted ('net.conv1.weight'); a target path uses slashes ('params/net/conv1/kernel'). A rule pairs a
template of each. In a template, `{name}` stands for one or more characters of a segment. `{name*}` stands for one or
more whole segments, whose separators are translated.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.errors import UserError

_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\*?)\}")
_SHOWN = 10  # names per kind in an error message


class ConversionError(UserError):
    """Error of a conversion; if names or shapes do not fit the rules, further lines list them by kind."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """Change of layout from the reference to Flax, and its inverse; results may share memory with their input."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def _permutation(*axes: int) -> Transform:
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    return Transform(lambda array: np.transpose(array, axes), lambda array: np.transpose(array, inverse))


IDENTITY = Transform(lambda array: array, lambda array: array)
LINEAR = _permutation(1, 0)  # [O, I] <-> [I, O]
CONV1D = _permutation(2, 1, 0)  # [O, I, K] <-> [K, I, O]
CONV3D = _permutation(2, 3, 4, 1, 0)  # [O, I, T, H, W] <-> [T, H, W, I, O]
POINTWISE = Transform(lambda array: array[..., 0].T, lambda array: array.T[..., None])  # [O, I, 1] <-> [I, O]
VECTOR = Transform(lambda array: array.reshape(-1), lambda array: array.reshape(1, -1, 1))  # [1, C, 1] <-> [C]
WINDOW_BIAS = Transform(lambda array: array[0, 0], lambda array: array[None, None])  # [1, 1, H, W] <-> [H, W]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Rule that maps the arrays whose names match `source` to `target`, in the layout that `transform` gives.

    A rule without a target (see `Rule.dropped`) matches names that Flax has no variable for. Its `value` is written
    back for every target path that matches `like`.

    Attributes:
      source: Template of names in the reference.
      target: Template of paths in Flax; None drops the names.
      transform: Change of layout.
      like: Template of target paths, for a dropped name that is written back.
      value: Value that is written back.

    Raises:
      ValueError: if a template is malformed, or the fields of two templates differ.
    """

    source: str
    target: str | None
    transform: Transform = IDENTITY
    like: str | None = None
    value: np.ndarray | np.generic | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.target is not None and (self.like is not None or self.value is not None):
            raise ValueError(f"rule {self.source!r}: `like` and `value` are for dropped names, which have no target")
        if (self.like is None) != (self.value is None):
            raise ValueError(f"rule {self.source!r}: `like` and `value` are given together or not at all")
        fields = _fields(self.source, ".")
        path = self.like if self.target is None else self.target
        if path is not None and _fields(path, "/") != fields:
            raise ValueError(f"rule {self.source!r} -> {path!r}: the two templates have different fields")

    @classmethod
    def dropped(cls, source: str, like: str | None = None, value: np.ndarray | np.generic | None = None) -> "Rule":
        """Make a rule for names that `convert` drops; `invert` writes `value` for each path that matches `like`."""
        return cls(source, None, like=like, value=value)


def convert(
    source: Mapping[str, np.ndarray], rules: Sequence[Rule], expected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Convert the arrays of a reference to nested variables ({'params': {...}, 'batch_stats': {...}}).

    The first rule that matches a name is used. Arrays keep their dtype.

    Args:
      source: Arrays by their names in the reference.
      rules: Mapping of names to paths.
      expected: Nested tree whose leaves have a `.shape`; the result must have its paths and shapes.

    Raises:
      ConversionError: listing all names that no rule uses, targets given twice and arrays with the wrong number of axes
        for their rule; with `expected`, also paths not filled, unknown paths and shape mismatches.
    """
    problems = _Problems("cannot convert")
    filled: dict[str, np.ndarray] = {}
    origins: dict[str, str] = {}
    for name, array in source.items():
        rule, fields = _first_match(rules, name, "source", ".")
        if rule is None:
            problems.add("source names that no rule uses", name)
        elif rule.target is not None:
            path = _fill(rule.target, fields, ".", "/")
            if path in filled:
                problems.add("targets given twice", f"{path}: by {origins[path]} and {name}")
            filled[path] = _transformed(rule.transform.forward, array, name, problems)
            origins[path] = name
    if expected is not None:
        wanted = flatten(expected)
        for path in wanted.keys() - filled.keys():
            problems.add("target paths not filled", path)
        for path in filled.keys() - wanted.keys():
            problems.add("paths that the expected tree has not", f"{path} (from {origins[path]})")
        for path in wanted.keys() & filled.keys():
            shape = tuple(wanted[path].shape)
            if np.shape(filled[path]) != shape:
                problems.add("shape mismatches", f"{path}: got {np.shape(filled[path])}, expected {shape}")
    problems.check()
    return unflatten(filled)


def invert(variables: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Convert nested variables to the reference's names and layout, as the inverse of `convert` by the same rules.

    The first rule whose target matches a path is used, so rules with overlapping templates must overlap in the same
    order on both sides. Names that `convert` dropped come back with their rule's value.

    Raises:
      ConversionError: listing all paths that no rule covers, names given twice, and arrays with the wrong number of
        axes.
    """
    problems = _Problems("cannot invert")
    result: dict[str, np.ndarray] = {}
    origins: dict[str, str] = {}
    leaves = flatten(variables)
    for path, leaf in leaves.items():
        rule, fields = _first_match(rules, path, "target", "/")
        if rule is None:
            problems.add("target paths that no rule covers", path)
            continue
        name = _fill(rule.source, fields, "/", ".")
        if name in result:
            problems.add("source names given twice", f"{name}: by {origins[name]} and {path}")
        result[name] = _transformed(rule.transform.inverse, np.asarray(leaf), path, problems)
        origins[name] = path
    for path in leaves:
        for rule in rules:
            fields = _match(rule.like, path, "/") if rule.like is not None else None
            if fields is not None:
                result.setdefault(_fill(rule.source, fields, "/", "."), np.array(rule.value))
    problems.check()
    return result


def strip_prefix(source: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Remove `prefix` (such as 'module.') if all names have it; return the names unchanged if none has.

    Raises:
      ConversionError: if only some names have it.
    """
    without = [name for name in source if not name.startswith(prefix)]
    if len(without) == len(source):
        return dict(source)
    problems = _Problems(f"cannot strip the prefix {prefix!r}")
    for name in without:
        problems.add("names without the prefix, which others have", name)
    problems.check()
    return {name[len(prefix) :]: value for name, value in source.items()}


def state_dict_of(source: Any, what: str, required: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of a loaded checkpoint, or of a bare state dict, by name without the prefix `module.`.

    Args:
      source: Content of the file.
      what: Kind of checkpoint for the message, such as 'MIL-NCE'.
      required: Names by which a checkpoint of this kind is known.

    Raises:
      ConversionError: if the file holds something else.
    """
    content = source.get("state_dict", source) if isinstance(source, Mapping) else source
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"not a {what} checkpoint: expected a state dict, found a {type(content).__name__}")
    content = strip_prefix(content, "module.")
    for name in required:
        if name not in content:
            raise ConversionError(
                f"not a {what} checkpoint: it has no {name!r} (its first name is {next(iter(content))!r})"
            )
    return content


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten {'a': {'b': leaf}} to {'a/b': leaf}; empty branches vanish.

    Raises:
      ConversionError: if a key cannot be a segment of a path.
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise ConversionError(f"the key {key!r} of a nested tree is not a non-empty str without '/'")
        if isinstance(value, Mapping):
            leaves.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            leaves[key] = value
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nest {'a/b': leaf} to {'a': {'b': leaf}}, as the inverse of `flatten`.

    Raises:
      ConversionError: if a path is both a leaf and a branch.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        branch = tree
        for depth, parent in enumerate(parents):
            branch = branch.setdefault(parent, {})
            if "/".join(parents[: depth + 1]) in leaves:
                raise ConversionError(
                    f"the path {'/'.join(parents[: depth + 1])!r} is both a leaf and a branch of {path!r}"
                )
        branch[last] = leaf
    return tree


class _Problems:
    """Collector of problems by kind, so that one error lists all of them."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.kinds: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self.kinds.setdefault(kind, []).append(name)

    def check(self) -> None:
        if not self.kinds:
            return
        lines = [f"{self.title}: " + ", ".join(f"{len(names)} {kind}" for kind, names in self.kinds.items())]
        for kind, names in self.kinds.items():
            lines += [f"{kind}:", *(f"  {name}" for name in sorted(names)[:_SHOWN])]
            if len(names) > _SHOWN:
                lines.append(f"  ... and {len(names) - _SHOWN} more")
        raise ConversionError("\n".join(lines))


def _transformed(change: Callable[[np.ndarray], np.ndarray], array: Any, name: str, problems: _Problems) -> np.ndarray:
    try:
        return change(array)
    except ValueError as error:
        problems.add("arrays that their rule's transform does not take", f"{name}: shape {np.shape(array)}, {error}")
        return array


def _first_match(
    rules: Iterable[Rule], name: str, side: str, separator: str
) -> tuple[Rule, dict[str, str]] | tuple[None, None]:
    for rule in rules:
        template = getattr(rule, side)
        fields = None if template is None else _match(template, name, separator)
        if fields is not None:
            return rule, fields
    return None, None


def _match(template: str, name: str, separator: str) -> dict[str, str] | None:
    match = _pattern(template, separator).fullmatch(name)
    return None if match is None else match.groupdict()


@functools.cache
def _pattern(template: str, separator: str) -> re.Pattern[str]:
    segment = r"[^./]+"
    segments = rf"{segment}(?:{re.escape(separator)}{segment})*"
    parts = _FIELD.split(template)  # literal, name, star, literal, name, star, ..., literal
    expression = re.escape(parts[0])
    for name, star, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        expression += f"(?P<{name}>{segments if star else segment})" + re.escape(literal)
    return re.compile(expression)


def _fill(template: str, fields: Mapping[str, str], separator: str, translated: str) -> str:
    return _FIELD.sub(lambda field: fields[field[1]].replace(separator, translated), template)


def _fields(template: str, separator: str) -> set[tuple[str, str]]:
    """Return the (name, star) fields of a template.

    Raises:
      ValueError: if the template is malformed.
    """
    other = {".": "/", "/": "."}[separator]
    literals = _FIELD.sub("", template)
    if not template or other in literals or "{" in literals or "}" in literals:
        raise ValueError(f"template {template!r}: expected segments between {separator!r}, with fields {{a}} or {{a*}}")
    fields = _FIELD.findall(template)
    if len({name for name, _ in fields}) < len(fields):
        raise ValueError(f"template {template!r}: a field is used twice")
    for segment in template.split(separator):
        if any(star for _, star in _FIELD.findall(segment)) and not _FIELD.fullmatch(segment):
            raise ValueError(
                f"template {template!r}: a field with a star must be a segment of its own, got {segment!r}"
            )
    return set(fields)

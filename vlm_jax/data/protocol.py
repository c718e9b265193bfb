"""Protocol of a prepared data set: `protocol.json`, which preparation writes and readers check."""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import DataError

PROTOCOL = "protocol.json"


def read_protocol(directory: str | Path) -> dict[str, Any]:
    """Read the protocol that `finalize` wrote, with the keys `name`, `protocol` and `splits`.

    Raises:
      DataError: if it is missing or damaged.
    """
    path = Path(directory) / PROTOCOL
    if not str(directory) or not path.is_file():
        raise DataError(
            f"data {str(directory) or '(empty path)'}: no {PROTOCOL} there; expected a folder made by data_prep"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}); run the preparation again with --finalize") from None
    fault = _content_fault(content)
    if fault:
        raise DataError(f"{path}: damaged ({fault}); run the preparation again with --finalize")
    content["protocol"] = _Statements(path, content["protocol"])
    return content


class _Statements(dict):
    """Statements of a data set by key; reading a missing key raises DataError."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, dict(self))

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self.path}: has no key protocol.{key}; prepare the data again")


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _content_fault(content: Any) -> str | None:
    """Return the first fault of the file's content; None if there is none."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}, expected an object"
    for key, kind in (("name", str), ("protocol", dict), ("splits", dict)):
        if not isinstance(content.get(key), kind):
            return f"{key} is {reprlib.repr(content.get(key))}, expected a {kind.__name__}"
    for name, split in content["splits"].items():
        lists = [split.get(key) for key in ("records", "groups")] if isinstance(split, dict) else []
        fits = lists and _is_count(split.get("shards")) and _is_count(split.get("bytes"))
        if not fits or not all(_are_counts(counts) and len(counts) == split["shards"] for counts in lists):
            return (
                f"splits.{name} is {reprlib.repr(split)}, expected shards, bytes, and records and groups of each shard"
            )
    for key, value in content["protocol"].items():
        if key in _STATED and not _STATED[key][1](value):
            return f"protocol.{key} is {reprlib.repr(value)}, expected {_STATED[key][0]}"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_count, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15


_STATED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (
            *("feature_dim", "text_dim", "sentence_dim", "windows", "num_frames", "size", "max_candidates"),
            *("smallest_side", "num_classes", "interval"),
        ),
        ("a whole number above 0", lambda value: _is_count(value) and value > 0),
    ),
    **dict.fromkeys(
        ("jitter", "start_second", "short_side", "num_answers", "frames_per_record", "max_side"),
        ("a whole number, at least 0", _is_count),
    ),
    **dict.fromkeys(("fps", "min_time", "clip_seconds", "overlap"), ("a number, at least 0", _is_number)),
    "feature_stride": ("a number above 0", lambda value: _is_number(value) and value > 0),
    **dict.fromkeys(
        ("kind", "use", "dtype", "format", "video_source", "text_source", "labels", "answers_sha256"),
        ("text", lambda value: isinstance(value, str)),
    ),
    **dict.fromkeys(("video_features", "text_features"), ("an object", lambda value: isinstance(value, dict))),
    "lengths": ("a list of whole numbers", _are_counts),
    "actions": (
        "an object of names by number",
        lambda value: (
            isinstance(value, dict) and all(key.isdecimal() and isinstance(name, str) for key, name in value.items())
        ),
    ),
    "classes": (
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
}
"""Expected value and its check, for the statements that readers use, by key."""


def check_protocol(directory: str | Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that records were prepared with the settings that a config asks for.

    Args:
      directory: Folder of the data set, for the message.
      found: Protocol of the data set.
      wanted: Values that the protocol must have, by key.

    Raises:
      DataError: naming the first key that differs.
    """
    for key, value in wanted.items():
        if found.get(key) != value:
            meaning = ": the features that its reference published" if key.endswith("_source") and not value else ""
            raise DataError(
                f"data {directory}: prepared with {key} = {found.get(key)!r}, the config asks for {value!r}{meaning}"
            )


def find_protocol(directory: str | Path) -> dict[str, Any]:
    """Return the statements of a data set by key; empty if there is no data set yet.

    Raises:
      DataError: if the file is damaged.
    """
    if not str(directory) or not (Path(directory) / PROTOCOL).is_file():
        return {}
    return read_protocol(directory)["protocol"]

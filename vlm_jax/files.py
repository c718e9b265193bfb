"""Atomic writing of files: first under a temporary name, which is then changed."""

import json
import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Return a context with a temporary path beside `path`, unique to the writer, which becomes `path` on success."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON with keys in alphabetical order; see `finite`."""
    write_atomically(path, (json.dumps(finite(content), indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def finite(content: Any) -> Any:
    """Return the content with None for numbers that are not finite, which JSON cannot represent."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

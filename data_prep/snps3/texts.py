"""Reader of the texts in annotation files of SNP-S3, line by line: files of web captions have millions of lines."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import DataError


def read_objects(paths: Sequence[Path], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of some files that have at least one of some keys. Other lines are counted and printed.

    Args:
      paths: Files with one JSON object per line.
      keys: Keys of which an object needs one.

    Raises:
      DataError: For a file that cannot be read, or has no such object.
    """
    for path in paths:
        found = skipped = 0
        try:
            with open(path, encoding="utf-8-sig") as file:
                for line in file:
                    row = _parsed(line)
                    if isinstance(row, dict) and any(key in row for key in keys):
                        found += 1
                        yield row
                    elif line.strip():
                        skipped += 1
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: expected one JSON object per line ({error})") from None
        if not found:
            raise DataError(f"{path}: no line has {' or '.join(map(repr, keys))}")
        if skipped:
            print(f"{path}: {skipped} lines skipped, which are no JSON objects with {' or '.join(map(repr, keys))}")


def read_captions(paths: Sequence[Path]) -> Iterator[str]:
    """Yield the captions of some files. Empty ones, which stand for transcripts, are left out.

    Raises:
      DataError: For a file that cannot be read or has no caption.
    """
    for row in read_objects(paths, ["caption"]):
        if isinstance(row["caption"], str) and row["caption"].strip():
            yield row["caption"]


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
    """Yield all texts of some files that a model may read: captions, questions, titles and options.

    Raises:
      DataError: For a file that cannot be read or has no text.
    """
    for row in read_objects(paths, ["caption", "title", "options", "text"]):
        for key in ("caption", "title", "options", "text"):
            values = row.get(key)
            for text in values if isinstance(values, list) else [values]:
                if isinstance(text, str) and text.strip():
                    yield text


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None

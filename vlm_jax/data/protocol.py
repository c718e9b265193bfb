"""What a prepared data set says about itself: `protocol.json`, written by preparation, checked when data are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import DataError

PROTOCOL = "protocol.json"


def read_protocol(directory: str | Path) -> dict[str, Any]:
    """What `finalize` wrote: `name`, `protocol` and `splits`.

    Raises:
      DataError: where there is none, or it is damaged.
    """
    path = Path(directory) / PROTOCOL
    if not str(directory) or not path.is_file():
        raise DataError(
            f"data {str(directory) or '(empty path)'}: no {PROTOCOL} there; expected a folder made by data_prep"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); run the preparation again with --finalize") from None


def check_protocol(directory: str | Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that records were made the way a config reads them.

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
    """Return how the records of a data set were made, empty where no data set lies there yet.

    Raises:
      DataError: where the file is damaged.
    """
    if not str(directory) or not (Path(directory) / PROTOCOL).is_file():
        return {}
    return read_protocol(directory)["protocol"]

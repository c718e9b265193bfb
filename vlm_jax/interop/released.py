"""Files that the references published: what is known of one, and how it is fetched."""

import http.client
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlm_jax.files import replacing
from vlm_jax.interop.rules import ConversionError

PREFIX = "released:"
"""`released:NAME` stands for a checkpoint wherever one is asked for."""


@dataclass(frozen=True)
class Released:
    """A published checkpoint.

    Attributes:
      url: Of the file; its ending tells the form. Where no address is known, a name of our own.
      origin: The repository that names it.
      beside: Further files that are read with it: config key -> url.
    """

    url: str
    origin: str
    beside: Mapping[str, str] = field(default_factory=dict)


def fetch(url: str, folder: Path, origin: str) -> Path:
    """The file of an address, from the folder if it lies there already, else over the network into it.

    Args:
      url: The address, or a name of our own for a file whose address is not known.
      folder: Where files are kept.
      origin: Who names it.

    Raises:
      ConversionError: where it cannot be had; the line says what to put where.
    """
    path = folder / url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if "://" not in url:
        raise ConversionError(f"{url}: its address is not known here; get it from {origin} and put it at {path}")
    try:
        with replacing(path) as partial:
            with urllib.request.urlopen(url, timeout=60) as answer, open(partial, "wb") as file:
                shutil.copyfileobj(answer, file)
                expected = answer.headers.get("Content-Length")
            found = partial.stat().st_size
            if expected is not None and int(expected) != found:
                raise OSError(f"{found} of {expected} bytes came")
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ConversionError(f"{url}: cannot be fetched ({reason}); fetch it elsewhere and put it at {path}") from None
    return path

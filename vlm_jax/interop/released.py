"""Files that the references published: what is known of one, and how it is fetched.

`VLM_JAX_MIRROR` names a place to fetch all of them from instead, an address or a folder that holds NAME/FILE.
"""

import hashlib
import http.client
import os
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vlm_jax.files import replacing
from vlm_jax.interop.rules import ConversionError

MIRROR = "VLM_JAX_MIRROR"
PAGES = ("drive.google.com", "forms.gle", "mediafire.com")
"""Addresses of pages that want a browser: they answer a program with a form."""


@dataclass(frozen=True)
class Released:
    """A published checkpoint.

    Attributes:
      url: Of the file; its ending tells the form. Where no address is known, a name of our own.
      origin: The repository that names it.
      beside: Further files that are read with it: config key -> url.
      sha256: Digests in hexadecimal, by address, where they are known.
    """

    url: str
    origin: str
    beside: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)


class ReleasedData(NamedTuple):
    """Published files that are no checkpoint: features, captions, word vectors.

    Attributes:
      what: What they are, in a few words.
      origin: The repository that names them.
      files: Addresses by the name under which a file is kept.
    """

    what: str
    origin: str
    files: Mapping[str, str]


def fetch(url: str, folder: Path, origin: str, name: str = "", sha256: str = "") -> Path:
    """The file of an address, from the folder if it lies there already, else over the network into it.

    Args:
      url: The address, or a name of our own for a file that has none by itself.
      folder: Where files are kept; its last part is the name of what was published.
      origin: Who names it.
      name: Under which it is kept; the address's last part if not given.
      sha256: Its digest in hexadecimal, checked when it is fetched.

    Raises:
      ConversionError: where it cannot be had; the line says what to put where.
    """
    path = folder / (name or url.rsplit("/", 1)[-1])
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if mirror := os.environ.get(MIRROR, "").rstrip("/"):
        url = f"{mirror if '://' in mirror else Path(mirror).absolute().as_uri()}/{folder.name}/{path.name}"
    elif "://" not in url or any(page in url for page in PAGES):
        where = f"{origin}, {url}," if "://" in url else origin
        raise ConversionError(f"{path.name}: no program can fetch it; get it from {where} and put it at {path}")
    try:
        with replacing(path) as partial:
            with urllib.request.urlopen(url, timeout=60) as answer, open(partial, "wb") as file:
                shutil.copyfileobj(answer, file)
                expected = answer.headers.get("Content-Length")
            found = partial.stat().st_size
            if expected is not None and int(expected) != found:
                raise OSError(f"{found} of {expected} bytes came")
            if sha256 and (digest := _digest(partial)) != sha256:
                raise OSError(f"its sha256 is {digest}, expected {sha256}")
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ConversionError(f"{url}: cannot be fetched ({reason}); fetch it elsewhere and put it at {path}") from None
    return path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that the reference implementations published: their descriptions, and their download.

`VLM_JAX_MIRROR` is a URL or a folder that holds NAME/FILE; if it is set, all files are fetched from there instead.
"""

import hashlib
import http.client
import os
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.files import replacing
from vlm_jax.interop.rules import ConversionError

MIRROR = "VLM_JAX_MIRROR"
PAGES = ("drive.google.com", "forms.gle", "mediafire.com")
"""Hosts that need a browser, because they answer a program with a form."""


@dataclass(frozen=True)
class Released:
    """Published checkpoint.

    Attributes:
      url: URL of the file, whose ending gives the format; a name of our own if no URL is known.
      origin: Repository that publishes it.
      beside: URLs of further files that are read with it, by config key.
      sha256: Known SHA-256 digests in hexadecimal, by URL.
      options: Values of config keys that the file does not tell.
    """

    url: str
    origin: str
    beside: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class ReleasedData(NamedTuple):
    """Published files other than checkpoints, such as features, captions and word vectors.

    Attributes:
      what: Description in a few words.
      origin: Repository that publishes them.
      files: URLs by the file name on disk.
    """

    what: str
    origin: str
    files: Mapping[str, str]


def fetch(url: str, folder: Path, origin: str, name: str = "", sha256: str = "") -> Path:
    """Return the path of a published file, after downloading it if the folder does not have it.

    Args:
      url: URL of the file, or a name of our own if no URL is known.
      folder: Folder that files are kept in; its last part is the name of the release.
      origin: Repository that publishes the file, for the message.
      name: File name on disk; the last part of the URL if not given.
      sha256: SHA-256 digest in hexadecimal, checked after a download; '' checks nothing.

    Raises:
      ConversionError: if it cannot be downloaded; the line says where to put the file.
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

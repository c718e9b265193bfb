"""Vectors of sentences by their names (qid), and what they were made with; numpy only.

    NAME.npz    an array a sentence: `[S]`, or `[L, C]`, one row a word
    NAME.json   settings, where launch/extract_text_features.py made them

A folder of QID.npy files does as well, with `settings.json` in it where there is one.
"""

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_jax.array_files import load_array, read_member
from vlm_jax.features import FeatureError
from vlm_jax.files import replacing, write_json

LAYERS = ("sentence", "words")
"""One vector per sentence `[S]`, or one per known word `[L, C]`."""
FINGERPRINT = 16
"""Characters of a fingerprint that a source states."""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """What vectors were made with.

    Attributes:
      layer: 'sentence' or 'words'.
      dim: S or C.
      fingerprint: Of the checkpoint's variables (`Predictor.fingerprint`).
      vocabulary: Digest of the word list.
      lower_case: Whether sentences were lower-cased.
      max_words: How many known words of each were kept.
      checkpoint: Where it lay.
    """

    layer: str
    dim: int
    fingerprint: str
    vocabulary: str
    lower_case: bool
    max_words: int
    checkpoint: str = ""

    @property
    def source(self) -> str:
        """All that decides the vectors, in a word: what a data set states and a config asks for."""
        case = "lower" if self.lower_case else "as_is"
        marks = self.fingerprint[:FINGERPRINT], self.vocabulary[:FINGERPRINT]
        return ":".join((self.layer, case, str(self.max_words), *marks))


class EncodedText(NamedTuple):
    """Features of sentences by name, the names of sentences without a known word, and what made them."""

    vectors: dict[str, np.ndarray]
    unknown: list[str]
    settings: TextSettings


class TextVectors(Mapping[str, np.ndarray]):
    """Vectors by name, read when they are asked for.

    Args:
      path: A `.npz` file or a folder of `.npy` files.

    Attributes:
      settings: None where nothing is known of them.

    Raises:
      FeatureError: where there are none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._archive = None
        if not self.path.is_dir():
            try:
                self._archive = zipfile.ZipFile(self.path)
                names = (name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy"))
                self._names = dict.fromkeys(names)
            except FileNotFoundError:
                raise FeatureError(f"{self.path}: no such file") from None
            except (ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError):
                raise FeatureError(f"{self.path}: not a .npz file of arrays by qid") from None
        else:
            self._names = dict.fromkeys(sorted(entry.stem for entry in self.path.glob("*.npy")))
        if not self._names:
            raise FeatureError(f"{self.path}: holds no vectors")
        self.settings = self._read_settings()

    @property
    def source(self) -> str:
        """`TextSettings.source`, empty where nothing is known."""
        return self.settings.source if self.settings else ""

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        try:
            if self._archive is None:
                return load_array(self.path / f"{name}.npy")
            return read_member(self._archive, f"{name}.npy")
        except (ValueError, OSError) as error:
            raise FeatureError(f"{self.path}: {name}: damaged ({' '.join(str(error).split())})") from None

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read_settings(self) -> TextSettings | None:
        path = _settings_path(self.path)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return TextSettings(**{field.name: content[field.name] for field in dataclasses.fields(TextSettings)})
        except (ValueError, TypeError) as error:
            raise FeatureError(f"{path}: damaged ({error})") from None
        except KeyError as error:
            raise FeatureError(f"{path}: has no key {error}") from None


def save(path: str | Path, vectors: Mapping[str, np.ndarray], settings: TextSettings) -> None:
    """Writes vectors and their settings; the file appears under its name when it is whole.

    Raises:
      FeatureError: for a name without the ending `.npz`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise FeatureError(f"{path}: expected a name that ends in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        # Not np.savez: a qid may be called as one of its own arguments.
        with zipfile.ZipFile(partial, "w") as archive:
            for name, vector in vectors.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(vector), allow_pickle=False)
        write_json(_settings_path(path), dataclasses.asdict(settings))


def _settings_path(path: Path) -> Path:
    return path / "settings.json" if path.is_dir() else path.with_suffix(".json")

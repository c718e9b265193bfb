"""Features of sentences on disk, by the sentences' names (qid), with their settings; numpy only.

    NAME.npz    one array per sentence: `[S]`, or `[L, C]` with one row per word
    NAME.json   settings, if launch/extract_text_features.py made the file

A folder of QID.npy files is accepted as well; its settings, if known, lie in `settings.json`.
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
"""Layers of features: one vector per sentence `[S]`, or one per known word `[L, C]`."""
FINGERPRINT = 16
"""Number of characters of a fingerprint in a source."""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Settings that vectors were made with.

    Attributes:
      layer: One of `LAYERS`.
      dim: Number of features, S or C.
      fingerprint: Fingerprint of the checkpoint's variables (`Predictor.fingerprint`).
      vocabulary: Digest of the word list.
      lower_case: If true, sentences were lower-cased.
      max_words: Largest number of known words that were kept per sentence.
      checkpoint: Path of the checkpoint at that time.
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
        """Return everything that the vectors depend on as one word, which data sets state and configs ask for."""
        case = "lower" if self.lower_case else "as_is"
        marks = self.fingerprint[:FINGERPRINT], self.vocabulary[:FINGERPRINT]
        return ":".join((self.layer, case, str(self.max_words), *marks))


class EncodedText(NamedTuple):
    """Encoded sentences.

    Attributes:
      vectors: Features by the sentence's name.
      unknown: Names of sentences without a known word.
      settings: Settings that the vectors were made with.
    """

    vectors: dict[str, np.ndarray]
    unknown: list[str]
    settings: TextSettings


class TextVectors(Mapping[str, np.ndarray]):
    """Vectors by name, each read from disk on access.

    Args:
      path: A `.npz` file or a folder of `.npy` files.

    Attributes:
      settings: Settings that the vectors were made with; None if unknown.

    Raises:
      FeatureError: if there are no vectors, or the settings are damaged.
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
        """Return `TextSettings.source`; '' if the settings are unknown."""
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
    """Write vectors and their settings; the file appears under its name when it is complete.

    Raises:
      FeatureError: if the name does not end in `.npz`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise FeatureError(f"{path}: expected a name that ends in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        # Not np.savez: a qid may have the name of one of its arguments.
        with zipfile.ZipFile(partial, "w") as archive:
            for name, vector in vectors.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(vector), allow_pickle=False)
        write_json(_settings_path(path), dataclasses.asdict(settings))


def _settings_path(path: Path) -> Path:
    return path / "settings.json" if path.is_dir() else path.with_suffix(".json")

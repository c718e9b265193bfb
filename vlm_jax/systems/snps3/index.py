"""Encoded videos, and an index of many that is kept in a file."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_jax.array_files import read_member
from vlm_jax.errors import DataError
from vlm_jax.files import replacing


class EncodedVideo(NamedTuple):
    """Encoded video.

    Attributes:
      clips: Embeddings of its clips with length 1, `[C, D]`; a text's level-1 score is the log-sum-exp of its products
        with them.
      tokens: Tokens of its clips, which the cross encoder reads, `[C, D]`.
    """

    clips: np.ndarray
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class VideoIndex:
    """Encoded videos that can be searched.

    Attributes:
      names: Names of the videos, N.
      clips: Embeddings of their clips, `[N, C, D]`.
      tokens: Tokens of their clips, `[N, C, D]`.
      made_by: Digest of the weights and of the settings of frames.
      skipped: Videos that could not be read: name, reason, detail.
    """

    names: list[str]
    clips: np.ndarray
    tokens: np.ndarray
    made_by: str
    skipped: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write the index as an `.npz` file."""
        facts = json.dumps({"names": self.names, "made_by": self.made_by, "skipped": self.skipped})
        with replacing(Path(path)) as partial, open(partial, "wb") as file:
            np.savez(file, clips=self.clips, tokens=self.tokens, facts=np.frombuffer(facts.encode(), np.uint8))

    @classmethod
    def open(cls, path: str | Path) -> "VideoIndex":
        """Return the index of a file.

        Raises:
          DataError: If the file is missing or holds no index.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                clips, tokens, facts = (read_member(archive, f"{name}.npy") for name in ("clips", "tokens", "facts"))
            told = json.loads(facts.tobytes())
            skipped = [tuple(map(str, each)) for each in told["skipped"]]
            index = cls([str(name) for name in told["names"]], clips, tokens, str(told["made_by"]), skipped)
            if clips.ndim != 3 or clips.shape != tokens.shape or len(index.names) != len(clips):
                raise ValueError(f"{len(index.names)} names, arrays {clips.shape} and {tokens.shape}")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError) as error:
            raise DataError(f"{path}: no index of videos ({error})") from None
        return index

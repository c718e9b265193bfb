"""Interface of sub-word tokenisers, and the fixed-length inputs that a text encoder takes."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from vlm_jax.errors import UserError


class TokenizerError(UserError):
    """Error of a vocabulary or tokeniser model that cannot be used; its line names the file."""


class Tokenizer(Protocol):
    """Tokeniser whose vocabulary has ids from 0 to `vocabulary_size` - 1.

    Attributes:
      pad_id: Id of padding.
      unknown_id: Id of text that the vocabulary cannot express.
      cls_id: Id of the token in front of every text.
      sep_id: Id of the token behind every text.
      mask_id: Id that takes the place of a masked token.
      vocabulary_size: Number of pieces.
      fingerprint: SHA-256 digest of the vocabulary, in hexadecimal.
    """

    pad_id: int
    unknown_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    vocabulary_size: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without the tokens in front of it and behind it."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; padding and the tokens in front of a text and behind it are left out."""

    def piece(self, token: int) -> str:
        """Return the string of an id as the vocabulary has it, marks of continued words included."""

    def word_of(self, token: int) -> str:
        """Return the word that a piece is when it stands alone, '' for a continuation or a special token."""

    def id_of(self, word: str) -> int:
        """Return the id of the piece that is a whole word, `unknown_id` if there is none."""


def digest(kind: str, content: bytes) -> str:
    """Return the fingerprint of a vocabulary of some kind."""
    return hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()


def window(count: int, length: int, random: np.random.Generator | None = None) -> slice:
    """Return the part of `count` tokens that an input of `length` tokens has room for.

    Two tokens are added to every text, so `length - 2` of its own fit. The part is the first one without a generator,
    else a random one. The start is drawn even if the text fits.
    """
    room = length - 2
    start = int(random.integers(max(count - room, 0) + 1)) if random else 0
    return slice(start, min(start + room, count))


def frame(ids: Sequence[int], length: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the input of a text encoder: the ids between CLS and SEP, padded at the end.

    Args:
      ids: At most `length - 2` ids; see `window`.
      length: Number of tokens of the input, L.
      tokenizer: Tokeniser of the ids.

    Returns:
      Ids and mask (1 for a token, 0 for padding), int32 `[L]` each.
    """
    whole = [tokenizer.cls_id, *ids, tokenizer.sep_id]
    return padded(whole, length, tokenizer.pad_id), padded([1] * len(whole), length, 0)


def padded(values: Sequence[int], length: int, filling: int) -> np.ndarray:
    """Return values followed by a filling, int32 `[length]`.

    Raises:
      ValueError: If there are more values than `length`.
    """
    return np.pad(np.asarray(values, np.int32), (0, length - len(values)), constant_values=filling)

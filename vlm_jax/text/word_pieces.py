"""WordPiece tokeniser of BERT, uncased (Devlin et al. 2019; google-research/bert, tokenization.py)."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlm_jax.files import write_atomically
from vlm_jax.text.tokenizer import TokenizerError, digest

CONTINUED = "##"
"""Mark of a piece that continues a word."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_IDS = (0, 101, 102, 103)
"""Ids of padding, CLS, SEP and the mask token in the vocabulary of bert-base-uncased."""
LONGEST_WORD = 100
"""Number of characters beyond which a word is unknown."""
_WHOLE = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
_CJK = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class WordPieces:
    """Tokeniser by greedy longest match over a list of pieces; see `Tokenizer` for its attributes."""

    def __init__(self, pieces: Sequence[str], name: str = "vocabulary"):
        """Make a tokeniser of pieces by id.

        Args:
          pieces: Pieces; the index is the id.
          name: Name of the list in errors.

        Raises:
          TokenizerError: If a piece occurs twice or a special token is missing.
        """
        self._pieces = list(pieces)
        self._ids = {piece: index for index, piece in enumerate(self._pieces)}
        if len(self._ids) != len(self._pieces):
            twice = next(piece for index, piece in enumerate(self._pieces) if self._ids[piece] != index)
            raise TokenizerError(f"{name}: the token {twice!r} occurs twice")
        if missing := [token for token in SPECIAL if token not in self._ids]:
            raise TokenizerError(f"{name}: expected the tokens {', '.join(SPECIAL)}, found no {', '.join(missing)}")
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (self._ids[token] for token in SPECIAL)
        self.vocabulary_size = len(self._pieces)
        self.fingerprint = digest("wordpiece", "\n".join(self._pieces).encode())
        self._longest = max(map(len, self._pieces))

    @classmethod
    def load(cls, path: str | Path) -> "WordPieces":
        """Return the tokeniser of a `vocab.txt`: one piece per line, the line number from 0 is the id.

        Raises:
          TokenizerError: If the file cannot be read as such a list.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise TokenizerError(f"{path}: no such vocabulary") from None
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: expected a text file with one token per line ({error})") from None
        return cls(text.removesuffix("\n").split("\n"), str(path))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. The strings of special tokens, such as '[MASK]', give these tokens."""
        return [self._ids[piece] for piece in self.pieces(text)]

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of a text."""
        return [piece for word in basic_words(text) for piece in self._split(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the pieces of ids joined to words, without padding, CLS and SEP."""
        dropped = {self.pad_id, self.cls_id, self.sep_id}
        return " ".join(self._pieces[token] for token in ids if token not in dropped).replace(f" {CONTINUED}", "")

    def piece(self, token: int) -> str:
        """Return the string of an id."""
        return self._pieces[token]

    def word_of(self, token: int) -> str:
        """Return the word of an id, '' for a continuation or a special token."""
        piece = self._pieces[token]
        return "" if piece in SPECIAL or (piece.startswith(CONTINUED) and piece != CONTINUED) else piece

    def id_of(self, word: str) -> int:
        """Return the id of a word, `unknown_id` if it is no piece."""
        return self._ids.get(word, self.unknown_id)

    def _split(self, word: str) -> list[str]:
        if word in SPECIAL:
            return [word]
        if len(word) > LONGEST_WORD:
            return [SPECIAL[1]]
        pieces, start = [], 0
        while start < len(word):
            mark = CONTINUED if start else ""
            ends = range(min(len(word), start + self._longest), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self._ids), None)
            if end is None:
                return [SPECIAL[1]]
            pieces.append(mark + word[start:end])
            start = end
        return pieces


def basic_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in lower case, without accents.

    Control and format characters vanish, so a zero-width space joins its neighbours. Every CJK character and every
    punctuation mark is a word of its own. Full-width letters stay.
    """
    words = []
    for part in _WHOLE.split(text):
        words += [part] if part in SPECIAL else _basic_words(part)
    return words


def _basic_words(text: str) -> list[str]:
    spaced = unicodedata.normalize("NFC", "".join(map(_clean, text))).lower()
    plain = "".join(each for each in unicodedata.normalize("NFD", spaced) if unicodedata.category(each) != "Mn")
    return "".join(f" {each} " if _is_punctuation(each) else each for each in plain).split()


@functools.lru_cache(4096)
def _clean(character: str) -> str:
    if character in " \t\n\r":
        return " "
    category = unicodedata.category(character)
    if character == "\ufffd" or category.startswith("C"):
        return ""
    if category == "Zs":
        return " "
    code = ord(character)
    return f" {character} " if any(first <= code <= last for first, last in _CJK) else character


def _is_punctuation(character: str) -> bool:
    if character.isascii():
        return not character.isalnum() and character.isprintable() and character != " "
    return unicodedata.category(character).startswith("P")


def write_vocabulary(path: Path, pieces: Sequence[str]) -> None:
    """Write pieces as a `vocab.txt` that `WordPieces.load` reads."""
    write_atomically(path, ("\n".join(pieces) + "\n").encode())

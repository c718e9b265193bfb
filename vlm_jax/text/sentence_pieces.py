"""Sentencepiece tokeniser behind the interface of `Tokenizer` (Kudo and Richardson 2018)."""

from collections.abc import Iterable
from pathlib import Path

from vlm_jax.errors import missing_package
from vlm_jax.text.tokenizer import TokenizerError, digest

WORD_MARK = "\u2581"
"""Mark of a piece that begins a word."""
NAMES = ("pad", "unk", "cls", "sep", "mask")
"""Special tokens; a model declares each as '[NAME]' or '<name>', a control or user-defined symbol."""


class SentencePieces:
    """Tokeniser of a sentencepiece model; see `Tokenizer` for its attributes."""

    def __init__(self, model: bytes, name: str = "model"):
        """Make a tokeniser of a serialised model.

        Args:
          model: Content of a `.model` file.
          name: Name of the model in errors.

        Raises:
          TokenizerError: If the content is no model, or if the model lacks a special token.
          MissingPackageError: If the package sentencepiece is missing.
        """
        try:
            import sentencepiece
        except ImportError as error:
            raise missing_package(error) from None
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocabulary_size = len(self._processor)
        except RuntimeError:
            raise TokenizerError(f"{name}: not a sentencepiece model") from None
        ids = [self._special_id(each) for each in NAMES]
        if missing := [each for each, token in zip(NAMES, ids, strict=True) if token is None]:
            wanted = ", ".join(f"[{each.upper()}] or <{each}>" for each in missing)
            raise TokenizerError(f"{name}: expected the symbols {wanted} in the model")
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = ids
        self.fingerprint = digest("sentencepiece", model)

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieces":
        """Return the tokeniser of a `.model` file.

        Raises:
          TokenizerError: If the file cannot be read or is no model with all special tokens.
        """
        try:
            return cls(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise TokenizerError(f"{path}: {error.strerror}") from None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. The strings of control symbols give no special tokens."""
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without padding, CLS and SEP."""
        dropped = {self.pad_id, self.cls_id, self.sep_id}
        return self._processor.decode([int(token) for token in ids if token not in dropped])

    def piece(self, token: int) -> str:
        """Return the string of an id."""
        return self._processor.id_to_piece(int(token))

    def word_of(self, token: int) -> str:
        """Return the word of a piece that begins a word, '' for others and for special tokens."""
        piece = self.piece(token)
        return piece.removeprefix(WORD_MARK) if piece.startswith(WORD_MARK) else ""

    def id_of(self, word: str) -> int:
        """Return the id of the piece that is the word's beginning and end, `unknown_id` if there is none."""
        return self._processor.piece_to_id(WORD_MARK + word)

    def _special_id(self, name: str) -> int | None:
        if name == "unk":
            return self._processor.unk_id()
        tokens = [self._processor.piece_to_id(piece) for piece in (f"[{name.upper()}]", f"<{name}>")]
        return next((token for token in tokens if token != self._processor.unk_id()), None)

"""Command `vocabulary` of SNP-S3: the vocabulary of a tokeniser, from captions or from the reference's word counts."""

import argparse
import json
from pathlib import Path

from data_prep.commands import Commands
from data_prep.snps3.texts import read_texts
from vlm_jax.errors import DataError
from vlm_jax.text import vocabulary
from vlm_jax.text.word_pieces import WordPieces, write_vocabulary


def make_vocabulary(arguments: argparse.Namespace) -> None:
    """Write a WordPiece list, or a sentencepiece model where the output ends with `.model`.

    Raises:
      DataError: For input that cannot be used.
      TokenizerError: If the result is no vocabulary.
    """
    output = arguments.output
    pieces = output.suffix != ".model"
    output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.counts:
        if not pieces:
            raise DataError(f"--output: {output}: --counts has WordPiece tokens, expected a name such as vocab.txt")
        names = read_names(arguments.counts)
        WordPieces(names, str(arguments.counts))
        write_vocabulary(output, names)
    elif pieces:
        write_vocabulary(output, vocabulary.word_pieces(read_texts(arguments.texts), arguments.size))
    else:
        vocabulary.write_sentence_pieces(output, read_texts(arguments.texts), arguments.size)
    tokenizer = vocabulary.load(output)
    print(f"{output}: {tokenizer.vocabulary_size} tokens; set config.text.vocabulary_size to this number")


def read_names(path: Path) -> list[str]:
    """Return the tokens of a word-count file, the list `name`, by id.

    The reference's `count_reprocess_webvid.json` has all tokens of bert-base-uncased.

    Raises:
      DataError: If the file has no such list.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected JSON with the list 'name' ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name and "\n" not in name for name in names):
        raise DataError(f"{path}: expected a list of tokens as 'name'")
    return names


def add_commands(commands: Commands) -> None:
    """Add the command `vocabulary`."""
    parser = commands.add_parser("vocabulary", help="WordPiece list or sentencepiece model, from texts or word counts")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--texts", nargs="+", type=Path, help="files of captions, questions or choices, JSON lines")
    source.add_argument("--counts", type=Path, help="the reference's count_reprocess_webvid.json: its list 'name'")
    parser.add_argument("--output", required=True, type=Path, help="vocab.txt, or NAME.model for sentencepiece")
    parser.add_argument("--size", type=int, default=30522, help="number of tokens at most (default: %(default)s)")
    parser.set_defaults(run=make_vocabulary)

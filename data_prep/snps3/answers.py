"""Command `answers` of SNP-S3: the vocabulary of answers of open-ended questions."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.commands import Commands
from data_prep.snps3.texts import read_objects
from vlm_jax.errors import DataError
from vlm_jax.systems.snps3 import answers


def make_answers(arguments: argparse.Namespace) -> None:
    """Write the most frequent answers of training questions, and print how many questions they cover.

    Raises:
      DataError: For input that cannot be used.
    """
    if arguments.size < 1:
        raise DataError(f"--size: expected at least 1, found {arguments.size}")
    found = list(read_answers(arguments.questions))
    vocabulary = answers.most_frequent(found, arguments.size)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    answers.write(arguments.output, vocabulary)
    covered = sum(label >= 0 for label in answers.labels_of(found, vocabulary))
    print(
        f"{arguments.output}: {len(vocabulary)} answers, those of {covered} of {len(found)} training answers "
        f"({covered / len(found):.1%})"
    )


def read_answers(paths: Sequence[Path]) -> Iterator[str]:
    """Yield the answers of questions.

    Raises:
      DataError: For a file without questions, or one whose labels are numbers already.
    """
    for path in paths:
        texts = 0
        for row in read_objects([path], ["label"]):
            labels = row["label"] if isinstance(row["label"], list) else [row["label"]]
            for label in labels:
                if isinstance(label, str) and label.strip():
                    texts += 1
                    yield label
        if not texts:
            raise DataError(f"{path}: the labels are numbers; only answers in words need a vocabulary")


def add_commands(commands: Commands) -> None:
    """Add the command `answers`."""
    parser = commands.add_parser("answers", help="vocabulary of answers: the most frequent ones of training questions")
    parser.add_argument("--questions", required=True, nargs="+", type=Path, help="training questions, JSON lines")
    parser.add_argument("--output", required=True, type=Path, help="JSON list to write, config.answers.vocabulary")
    parser.add_argument(
        "--size", type=int, default=1500, help="answers at most; 1000 for MSVD-QA (default: %(default)s)"
    )
    parser.set_defaults(run=make_answers)

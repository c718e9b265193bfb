"""Command line of all preparations: python -m data_prep.NAME COMMAND ..., or --check DIR."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from vlm_jax.errors import DataError, UserError, missing_package

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def run_command(
    words: Sequence[str] | None,
    description: str,
    check: Callable[[Sequence[str]], None],
    add_commands: Callable[[Commands], None],
) -> None:
    """Run the command or the check that the arguments name.

    Args:
      words: Arguments, None for those of the command line.
      description: Description of the program, for its help.
      check: Function that runs `--check DIR ...`.
      add_commands: Function that adds the commands, each with its function as the default of `run`.
    """
    words = sys.argv[1:] if words is None else words
    if any(word.split("=")[0] == "--check" for word in words):
        check(words)
        return
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_commands(parser.add_subparsers(dest="command", required=True))
    arguments = parser.parse_args(words)
    arguments.run(arguments)


def check_folders(arguments: argparse.Namespace, *names: str) -> None:
    """Check that the folders named by some options exist, before anything is written.

    Raises:
      DataError: for a folder that does not exist; it names the option.
    """
    if getattr(arguments, "finalize", False):  # finalizing reads none of them
        return
    for name in names:
        if not os.path.isdir(getattr(arguments, name)):
            raise DataError(f"--{name}: {getattr(arguments, name)}: no such folder")


def main(run: Callable[[], None]) -> None:
    """Run a program. An expected error prints one line and exits with status 1."""
    try:
        try:
            run()
        except ModuleNotFoundError as error:
            raise missing_package(error) from None
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")

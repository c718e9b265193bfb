"""Converts a reference checkpoint: python launch/convert_checkpoint.py --system NAME --source FILE --output DIR

The output is a checkpoint for `--checkpoint` and `config.init_from`, with a config.json beside it. `--reverse` takes
one of our checkpoints as `--source` and writes a file that the reference's own scripts load. Either source may be
`released:NAME`.
"""

import argparse
from pathlib import Path

import _cli

from vlm_jax.convert import convert, revert
from vlm_jax.errors import ConfigError
from vlm_jax.references import convertible


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=convertible(), help="whose checkpoint; with --reverse, ours says so")
    parser.add_argument("--source", required=True, help="the reference's file; with --reverse, ours: RUN, RUN@best")
    parser.add_argument("--output", required=True, type=Path, help="folder to make; with --reverse, file to write")
    parser.add_argument(
        "--average", action="store_true", help="the running average of the parameters; with --reverse, beside them"
    )
    parser.add_argument("--reverse", action="store_true", help="from ours to the reference's form")
    parser.add_argument(
        "--epoch", type=int, default=0, help="with --reverse: what the file says (default: %(default)s)"
    )
    parser.add_argument("--bare", action="store_true", help="with --reverse: the arrays by name, nothing around them")
    arguments = parser.parse_args()
    if arguments.reverse:
        options = {name: getattr(arguments, name) for name in ("average", "epoch", "bare")}
        arrays = revert(arguments.source, arguments.output, **options)
        print(f"{arguments.output}: {arrays} arrays of {arguments.source}")
        return
    if not arguments.system:
        raise ConfigError(f"--system: expected one of {', '.join(convertible())}")
    found = convert(arguments.system, arguments.source, arguments.output, average=arguments.average)
    print(f"{arguments.output}: {found.arrays} arrays, {found.numbers:,} numbers of {arguments.source}")


if __name__ == "__main__":
    _cli.run(main)

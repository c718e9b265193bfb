"""Convert a reference checkpoint: python launch/convert_checkpoint.py --system NAME --source FILE --output DIR

The output is a checkpoint for `--checkpoint` and `config.init_from`, with a config.json beside it. With `--reverse`,
`--source` is one of our checkpoints, and the output is a file that the reference's own scripts load. Either source may
be `released:NAME`.
"""

import argparse
from pathlib import Path

import _cli

from vlm_jax.convert import convert, revert
from vlm_jax.errors import ConfigError
from vlm_jax.references import convertible


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=convertible(), help="system of the checkpoint; not needed with --reverse")
    parser.add_argument("--source", required=True, help="reference file; with --reverse, our checkpoint: RUN, RUN@best")
    parser.add_argument("--output", required=True, type=Path, help="output folder; with --reverse, output file")
    parser.add_argument(
        "--average", action="store_true", help="take the running average of the parameters; with --reverse, add it"
    )
    parser.add_argument("--reverse", action="store_true", help="convert our checkpoint to the reference's form")
    parser.add_argument(
        "--epoch", type=int, default=0, help="with --reverse: epoch that the file states (default: %(default)s)"
    )
    parser.add_argument("--bare", action="store_true", help="with --reverse: write only the arrays by name")
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

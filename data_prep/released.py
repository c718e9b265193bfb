"""Fetch data that the references published: python -m data_prep.released [NAME ...] [--output DIR]

Without names, the command lists all data with their addresses. With names, it fetches their files into DIR/NAME. If a
file cannot be fetched by a program, the error says which file to put where. The environment variable VLM_JAX_MIRROR
names another source, an address or a folder that holds NAME/FILE.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep import commands
from vlm_jax.errors import DataError
from vlm_jax.interop.released import fetch
from vlm_jax.references import released_checkpoints, released_data


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of the data to fetch (default: list all)")
    parser.add_argument(
        "--output", type=Path, default=Path("data/released"), help="folder to write to (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    known = released_data()
    for name in arguments.names:
        if name not in known:
            raise DataError(f"{name}: not one of {', '.join(sorted(known))}")
    for name in arguments.names:
        entry = known[name][1]
        for file, address in entry.files.items():
            print(fetch(address, arguments.output / name, entry.origin, file))
    if not arguments.names:
        for name, (system, entry) in sorted(known.items()):
            print(f"{name} ({system}): {entry.what}; {entry.origin}")
            for file, address in entry.files.items():
                print(f"  {file}: {address}")
        for name, (system, checkpoint) in sorted(released_checkpoints().items()):
            print(f"released:{name} ({system}): a checkpoint, fetched where one is asked for; {checkpoint.origin}")
            for address in (checkpoint.url, *checkpoint.beside.values()):
                print(f"  {address}")


if __name__ == "__main__":
    commands.main(main)

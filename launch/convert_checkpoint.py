"""Converts a reference checkpoint: python launch/convert_checkpoint.py --system NAME --source FILE --output DIR

The output is a checkpoint for `--checkpoint` and `config.init_from`, with a config.json beside it. `--reverse` takes
one of our checkpoints as `--source` and writes a file under the reference's names.
"""

import argparse
import importlib
from pathlib import Path

import _cli
import jax

from vlm_jax import config as configs
from vlm_jax.convert import CONFIGS, FILES, convert
from vlm_jax.interop import torch_files
from vlm_jax.tasks.task import get_task
from vlm_jax.train.checkpoint import checkpoint_folder, read_origin, restore_variables


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", required=True, choices=sorted(CONFIGS))
    parser.add_argument("--source", required=True, type=Path, help="the reference's file; with --reverse, ours")
    parser.add_argument("--output", required=True, type=Path, help="folder to make; with --reverse, file to write")
    parser.add_argument("--average", action="store_true", help="the running average of the parameters, if there is one")
    parser.add_argument("--reverse", action="store_true", help="from ours to the reference's names")
    arguments = parser.parse_args()
    (reverse if arguments.reverse else forward)(arguments)


def forward(arguments: argparse.Namespace) -> None:
    """Reference file -> our checkpoint."""
    found = convert(arguments.system, arguments.source, arguments.output, average=arguments.average)
    print(f"{arguments.output}: {found.arrays} arrays, {found.numbers:,} numbers of {arguments.source}")


def reverse(arguments: argparse.Namespace) -> None:
    """Our checkpoint -> reference file."""
    names = importlib.import_module(f"vlm_jax.interop.{arguments.system}")
    config = configs.find(arguments.source)
    variables = restore_variables(arguments.source, get_task(config).abstract_variables())
    source = names.to_state_dict(jax.device_get(variables))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    FILES.get(arguments.output.suffix, torch_files).save(arguments.output, source)
    origin = read_origin(arguments.source).get("source", checkpoint_folder(arguments.source))
    print(f"{arguments.output}: {len(source)} arrays of {origin}")


if __name__ == "__main__":
    _cli.run(main)

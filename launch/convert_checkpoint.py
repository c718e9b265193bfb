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
from vlm_jax.interop import paddle_files, torch_files
from vlm_jax.tasks.task import get_task
from vlm_jax.train.checkpoint import checkpoint_folder, read_origin, restore_variables, save_variables

CONFIGS = {"ctrl": "configs/ctrl_tacos.py", "milnce": "configs/milnce_howto100m.py"}
"""The config whose sizes a system's published checkpoints have."""
FILES = {".pdparams": paddle_files}
"""Who reads and writes files of an ending; torch's are all others."""


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", required=True, choices=sorted(CONFIGS))
    parser.add_argument("--source", required=True, type=Path, help="the reference's file; with --reverse, ours")
    parser.add_argument("--output", required=True, type=Path, help="folder to make; with --reverse, file to write")
    parser.add_argument("--reverse", action="store_true", help="from ours to the reference's names")
    arguments = parser.parse_args()
    (reverse if arguments.reverse else forward)(arguments)


def forward(arguments: argparse.Namespace) -> None:
    """Reference file -> our checkpoint."""
    names = importlib.import_module(f"vlm_jax.interop.{arguments.system}")
    source = names.state_dict(FILES.get(arguments.source.suffix, torch_files).load(arguments.source))
    config = configs.load(str(Path(__file__).parent.parent / CONFIGS[arguments.system]))
    for section, options in names.model_options(source).items():
        config[section].update(options)
    variables = names.to_variables(source, get_task(config).abstract_variables())
    save_variables(arguments.output, variables, {"system": arguments.system, "source": str(arguments.source)})
    configs.write(config, arguments.output / "config.json")
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(f"{arguments.output}: {len(source)} arrays, {count:,} numbers of {arguments.source}")


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

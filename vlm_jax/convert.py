"""From the references' checkpoints to ours and back: a file that lies here, or one that they published."""

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from vlm_jax import config as configs
from vlm_jax.interop import torch_files
from vlm_jax.references import FORMATS, PREFIX, config_of, fetch_released, read_arrays, released_folder
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables, save_variables


class Converted(NamedTuple):
    """What a conversion found: arrays of the file, and numbers in them that ours took."""

    arrays: int
    numbers: int


def convert(
    system: str, source: Path, output: Path, options: Mapping[str, str] | None = None, *, average: bool = False
) -> Converted:
    """Convert a reference's file to our checkpoint, with a config.json beside it.

    Args:
      system: One of `convertible()`.
      source: The reference's file.
      output: Folder to make.
      options: Further keys of the config, such as 'text.vocabulary'.
      average: The running average of the parameters, where the file holds one.

    Raises:
      UserError: where the file cannot be used.
    """
    arrays = read_arrays(system, source, average=average)
    config = config_of(system, arrays)
    config.update_from_flattened_dict(dict(options or {}))
    variables = configs.system_module(system, "interop").to_variables(arrays, get_task(config).abstract_variables())
    save_variables(output, variables, {"system": system, "source": str(source)})
    configs.write(config, output / "config.json")
    configs.carry_files(config, output)
    return Converted(len(arrays), sum(leaf.size for leaf in jax.tree.leaves(variables)))


def revert(source: str | Path, output: Path) -> int:
    """Write one of our checkpoints under its reference's names; return the number of arrays.

    Args:
      source: As `inference.load` takes it.
      output: File to write.

    Raises:
      UserError: where there is no checkpoint.
    """
    source = checkpoint_folder(checkpoint_path(source))
    config = configs.find(source)
    variables = restore_variables(source, get_task(config).abstract_variables())
    arrays = configs.system_module(config.task, "interop").to_state_dict(jax.device_get(variables))
    output.parent.mkdir(parents=True, exist_ok=True)
    FORMATS.get(output.suffix, torch_files).save(output, arrays)
    return len(arrays)


def checkpoint_path(reference: str | Path) -> Path:
    """Return the path itself; or for `released:NAME` that of the published checkpoint, converted at first use.

    It is kept in `~/.cache/vlm_jax/released/NAME`; where there is no network, its files may be put there.

    Raises:
      UserError: where it cannot be had.
    """
    text = str(reference)
    if not text.startswith(PREFIX):
        return Path(reference)
    folder = released_folder(text.removeprefix(PREFIX))
    if (folder / "checkpoint").is_dir():
        return folder / "checkpoint"
    files = fetch_released(text)
    partial = folder / f"checkpoint.{secrets.token_hex(4)}.tmp"
    try:
        convert(files.system, files.source, partial, files.beside)
        partial.rename(folder / "checkpoint")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "checkpoint"

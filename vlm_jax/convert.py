"""From the references' checkpoints to ours: a file that lies here, or one that they published."""

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.interop import paddle_files, released, torch_files
from vlm_jax.interop.released import Released
from vlm_jax.interop.rules import ConversionError
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import restore_variables, save_variables

PREFIX = "released:"
"""`released:NAME` stands for a published checkpoint wherever one is asked for."""
FORMATS = {".pdparams": paddle_files}
"""Who reads and writes files of an ending; torch's are all others."""


class Converted(NamedTuple):
    """What a conversion found: arrays of the file, and numbers in them that ours took."""

    arrays: int
    numbers: int


def convertible() -> list[str]:
    """Return the systems whose reference checkpoints can be converted."""
    return [name for name in configs.system_names() if configs.has_module(name, "interop")]


def read_arrays(system: str, source: Path, *, average: bool = False) -> dict[str, Any]:
    """Return a reference checkpoint's arrays under the reference's names.

    Raises:
      UserError: where the file cannot be read, or is of another system.
    """
    names = configs.system_module(system, "interop")
    if average and not getattr(names, "HOLDS_AVERAGE", False):
        raise ConversionError(f"{source}: files of {system} hold no running average")
    choice = {"average": True} if average else {}
    return names.state_dict(FORMATS.get(source.suffix, torch_files).load(source), **choice)


def config_of(system: str, arrays: Mapping[str, Any]) -> ConfigDict:
    """Return the published config with the sizes that a reference checkpoint's arrays decide."""
    config = configs.system_module(system, "config").default_config()
    for section, values in configs.system_module(system, "interop").model_options(arrays).items():
        config[section].update(values)
    return config


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
    return Converted(len(arrays), sum(leaf.size for leaf in jax.tree.leaves(variables)))


def revert(source: Path, output: Path) -> int:
    """Write one of our checkpoints under its reference's names; return the number of arrays.

    Raises:
      UserError: where there is no checkpoint.
    """
    config = configs.find(source)
    variables = restore_variables(source, get_task(config).abstract_variables())
    arrays = configs.system_module(config.task, "interop").to_state_dict(jax.device_get(variables))
    output.parent.mkdir(parents=True, exist_ok=True)
    FORMATS.get(output.suffix, torch_files).save(output, arrays)
    return len(arrays)


def released_checkpoints() -> dict[str, tuple[str, Released]]:
    """Return every published checkpoint by name, each with its system."""
    return {
        name: (system, entry)
        for system in convertible()
        for name, entry in getattr(configs.system_module(system, "interop"), "RELEASED", {}).items()
    }


def checkpoint_path(reference: str | Path) -> Path:
    """Return the path itself; or for `released:NAME` that of the published checkpoint, converted at first use.

    It is kept in `~/.cache/vlm_jax/released/NAME`; where there is no network, its files may be put there.

    Raises:
      UserError: where it cannot be had.
    """
    text = str(reference)
    if not text.startswith(PREFIX):
        return Path(reference)
    name, known = text.removeprefix(PREFIX), released_checkpoints()
    if name not in known:
        raise ConversionError(f"{text}: not one of {', '.join(PREFIX + entry for entry in sorted(known))}")
    system, entry = known[name]
    folder = Path.home() / ".cache" / "vlm_jax" / "released" / name
    if (folder / "checkpoint").is_dir():
        return folder / "checkpoint"
    source = released.fetch(entry.url, folder, entry.origin)
    beside = {key: str(released.fetch(url, folder, entry.origin)) for key, url in entry.beside.items()}
    partial = folder / f"checkpoint.{secrets.token_hex(4)}.tmp"
    try:
        convert(system, source, partial, beside)
        partial.rename(folder / "checkpoint")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "checkpoint"

"""Checkpoints of the reference implementations: local files and published ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.interop import paddle_files, released, torch_files
from vlm_jax.interop.released import Released, ReleasedData
from vlm_jax.interop.rules import ConversionError

PREFIX = "released:"
"""Prefix of a published checkpoint: `released:NAME` is accepted wherever a checkpoint is."""
FORMATS = {".pdparams": paddle_files}
"""Module that reads and writes a file, by the file's ending; `torch_files` for all other endings."""


class ReleasedFiles(NamedTuple):
    """Published checkpoint on disk.

    Attributes:
      system: Name of its system.
      source: File of the reference.
      options: Values of config keys: paths of further files, and what the file does not tell.
    """

    system: str
    source: Path
    options: Mapping[str, Any]


def convertible() -> list[str]:
    """Return the systems whose reference checkpoints can be converted."""
    return [name for name in configs.system_names() if configs.has_module(name, "interop")]


def read_arrays(system: str, source: Path, *, average: bool = False) -> dict[str, Any]:
    """Read the arrays of a reference checkpoint, by their names in the reference.

    Args:
      system: One of `convertible()`.
      source: File of the reference.
      average: If true, read the running average of the parameters instead of the parameters.

    Raises:
      UserError: if the file cannot be read, is of another system, or holds no average.
    """
    names = configs.system_module(system, "interop")
    if average and not getattr(names, "HOLDS_AVERAGE", False):
        raise ConversionError(f"{source}: files of {system} hold no running average")
    choice = {"average": True} if average else {}
    return names.state_dict(FORMATS.get(source.suffix, torch_files).load(source), **choice)


def config_of(system: str, arrays: Mapping[str, Any]) -> ConfigDict:
    """Return the published config, with the model sizes taken from a reference checkpoint's arrays."""
    config = configs.system_module(system, "config").default_config()
    for section, values in configs.system_module(system, "interop").model_options(arrays).items():
        (config[section] if section else config).update(values)
    return config


def released_checkpoints() -> dict[str, tuple[str, Released]]:
    """Return every published checkpoint by name, each with its system."""
    return {
        name: (system, entry)
        for system in convertible()
        for name, entry in getattr(configs.system_module(system, "interop"), "RELEASED", {}).items()
    }


def released_folder(name: str) -> Path:
    """Return the folder of a published checkpoint's files; without a network, they may be put there."""
    return Path.home() / ".cache" / "vlm_jax" / "released" / name


def fetch_released(reference: str) -> ReleasedFiles:
    """Return the files of `released:NAME`, after downloading those that are missing.

    Raises:
      ConversionError: if there is no such checkpoint, or its files cannot be downloaded.
    """
    name, known = reference.removeprefix(PREFIX), released_checkpoints()
    if name not in known:
        raise ConversionError(f"{reference}: not one of {', '.join(PREFIX + entry for entry in sorted(known))}")
    system, entry = known[name]
    folder = released_folder(name)

    def fetch(url: str) -> Path:
        return released.fetch(url, folder, entry.origin, sha256=entry.sha256.get(url, ""))

    beside = {key: str(fetch(url)) for key, url in entry.beside.items()}
    return ReleasedFiles(system, fetch(entry.url), {**entry.options, **beside})


def released_data() -> dict[str, tuple[str, ReleasedData]]:
    """Return all published files other than checkpoints by name, each with its system."""
    return {
        name: (system, entry)
        for system in convertible()
        for name, entry in getattr(configs.system_module(system, "interop"), "RELEASED_DATA", {}).items()
    }

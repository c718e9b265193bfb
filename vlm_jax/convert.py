"""From the references' checkpoints to ours: a file that lies here, or one that they published."""

import importlib
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from vlm_jax import config as configs
from vlm_jax.interop import paddle_files, released, torch_files
from vlm_jax.interop.rules import ConversionError
from vlm_jax.tasks.task import get_task
from vlm_jax.train.checkpoint import save_variables

CONFIGS = {
    "ctrl": "configs/ctrl_tacos.py",
    "groundnlq": "configs/groundnlq_scratch.py",
    "milnce": "configs/milnce_howto100m.py",
}
"""The config whose sizes a system's published checkpoints have."""
AVERAGED = ("groundnlq",)
"""Systems whose files hold a running average of the parameters, too."""
FILES = {".pdparams": paddle_files}
"""Who reads and writes files of an ending; torch's are all others."""


class Converted(NamedTuple):
    """What a conversion found: arrays of the file, and numbers in them that ours took."""

    arrays: int
    numbers: int


def convert(
    system: str, source: Path, output: Path, options: Mapping[str, str] | None = None, *, average: bool = False
) -> Converted:
    """Reference file -> our checkpoint, with a config.json beside it.

    Args:
      system: A key of `CONFIGS`.
      source: The reference's file.
      output: Folder to make.
      options: Further keys of the config, such as 'text.vocabulary'.
      average: The running average of the parameters, where the file holds one.

    Raises:
      ValueError: of the file's own kind, in one line, where it cannot be used.
    """
    names = importlib.import_module(f"vlm_jax.interop.{system}")
    if average and system not in AVERAGED:
        raise ConversionError(f"{source}: files of {system} hold no running average")
    choice = {"average": True} if average else {}
    arrays = names.state_dict(FILES.get(source.suffix, torch_files).load(source), **choice)
    config = configs.load(str(Path(__file__).parent.parent / CONFIGS[system]))
    for section, values in names.model_options(arrays).items():
        config[section].update(values)
    config.update_from_flattened_dict(dict(options or {}))
    variables = names.to_variables(arrays, get_task(config).abstract_variables())
    save_variables(output, variables, {"system": system, "source": str(source)})
    configs.write(config, output / "config.json")
    return Converted(len(arrays), sum(leaf.size for leaf in jax.tree.leaves(variables)))


def checkpoint_path(reference: str | Path) -> Path:
    """The path itself; or for `released:NAME` that of the published checkpoint, fetched and converted at first use.

    It is kept in `~/.cache/vlm_jax/released/NAME`; where there is no network, its files may be put there.

    Raises:
      ConversionError: where it cannot be had.
    """
    text = str(reference)
    if not text.startswith(released.PREFIX):
        return Path(reference)
    name = text.removeprefix(released.PREFIX)
    entry = released.find(name)
    folder = Path.home() / ".cache" / "vlm_jax" / "released" / name
    if (folder / "checkpoint").is_dir():
        return folder / "checkpoint"
    source = released.fetch(entry.url, folder, entry.origin)
    beside = {key: str(released.fetch(url, folder, entry.origin)) for key, url in entry.beside.items()}
    partial = folder / f"checkpoint.{secrets.token_hex(4)}.tmp"
    try:
        convert(entry.system, source, partial, beside)
        partial.rename(folder / "checkpoint")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "checkpoint"

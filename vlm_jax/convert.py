"""Conversion of reference checkpoints, local or published, to ours and back."""

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vlm_jax import config as configs
from vlm_jax.interop import torch_files
from vlm_jax.interop.rules import ConversionError
from vlm_jax.references import FORMATS, PREFIX, config_of, fetch_released, read_arrays, released_folder
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import restore_variables, save_variables, stored_shapes
from vlm_jax.train.step_folders import checkpoint_folder


class Converted(NamedTuple):
    """Size of a conversion.

    Attributes:
      arrays: Number of arrays in the reference's file.
      numbers: Number of values in the converted variables.
    """

    arrays: int
    numbers: int


def convert(
    system: str, source: str | Path, output: Path, options: Mapping[str, str] | None = None, *, average: bool = False
) -> Converted:
    """Convert a reference's file to a checkpoint of ours, with a config.json beside it.

    Args:
      system: One of `convertible()`.
      source: File of the reference, or `released:NAME`.
      output: Folder to make.
      options: Values of further config keys, such as 'text.vocabulary'.
      average: If true, convert the running average of the parameters, which the file must hold.

    Raises:
      UserError: if the file cannot be used.
    """
    file, options = source, dict(options or {})
    if str(source).startswith(PREFIX):
        files = fetch_released(str(source))
        if files.system != system:
            raise ConversionError(f"{source}: a checkpoint of {files.system}, not of {system}")
        file, options = files.source, {**files.options, **options}
    arrays = read_arrays(system, Path(file), average=average)
    config = config_of(system, arrays)
    config.update_from_flattened_dict(options)
    variables = configs.system_module(system, "interop").to_variables(arrays, get_task(config).abstract_variables())
    save_variables(output, variables, {"system": system, "source": str(source)})
    configs.write(config, output / "config.json")
    configs.carry_files(config, output)
    return Converted(len(arrays), sum(leaf.size for leaf in jax.tree.leaves(variables)))


def revert(source: str | Path, output: Path, *, average: bool = False, epoch: int = 0, bare: bool = False) -> int:
    """Write a checkpoint of ours as a file that the reference's own scripts load; return the number of arrays.

    Args:
      source: Reference to a checkpoint, in any form that `inference.load` accepts.
      output: File to write.
      average: If true, also write the running average of the parameters, for references whose files hold one.
      epoch: Epoch to state in the file, for references whose files have one.
      bare: If true, write only the arrays by name, without the reference's other entries.

    Raises:
      UserError: if there is no checkpoint, it has no average, or the file's ending is not the reference's.
    """
    folder = checkpoint_folder(checkpoint_path(source))
    config = configs.find(folder)
    names = configs.system_module(config.task, "interop")
    expected = getattr(names, "ENDING", ".pth")
    if FORMATS.get(output.suffix) != FORMATS.get(expected):
        raise ConversionError(f"{output}: files of {config.task} end in {expected}, found {output.suffix or 'nothing'}")
    if average and (bare or not getattr(names, "HOLDS_AVERAGE", False)):
        raise ConversionError(f"{output}: files of {config.task} hold no running average{' when bare' * bare}")
    if average and not any(name.startswith("ema_params/") for name in stored_shapes(folder)):
        raise ConversionError(f"{folder}: holds no running average")

    def arrays_of(average: bool) -> dict[str, Any]:
        variables = restore_variables(folder, get_task(config).abstract_variables(), average=average)
        return names.to_state_dict(jax.device_get(variables))

    content = arrays = arrays_of(average=False)
    if not bare and hasattr(names, "file_content"):
        averaged = {"average": arrays_of(average=True)} if average else {}
        content = names.file_content(arrays, epoch, **averaged)
    output.parent.mkdir(parents=True, exist_ok=True)
    FORMATS.get(output.suffix, torch_files).save(output, content)
    return len(arrays)


def checkpoint_path(reference: str | Path) -> Path:
    """Return the path of a checkpoint; `released:NAME` is downloaded and converted at first use.

    It is kept in `~/.cache/vlm_jax/released/NAME`. Without a network, its files may be put there.

    Raises:
      UserError: if a published checkpoint cannot be downloaded or converted.
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
        convert(files.system, files.source, partial, files.options)
        partial.rename(folder / "checkpoint")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "checkpoint"

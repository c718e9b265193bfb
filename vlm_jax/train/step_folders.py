"""Folders `checkpoints/STEP` of a run: completeness, metrics and ranking."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.files import write_json

MANIFEST = "files.json"
"""Name of the file with names and sizes of a finished checkpoint's files, and the CRC-32 of small ones."""
METRICS = "metrics.json"
"""Name of the file with the metrics of a checkpoint; missing until its evaluation is complete."""
OWN = (MANIFEST, METRICS)
SMALL = 1 << 20
"""Largest size of a file that has a CRC-32 in the manifest, bytes. Larger files hold arrays, which have checksums."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used; one line naming the folder."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are not those that were written."""


def step_folders(directory: Path) -> dict[int, Path]:
    """Return the finished checkpoints of a folder by step, oldest first; one is finished when it has its final name."""
    found = {int(entry.name): entry for entry in directory.glob("[0-9]*") if _is_finished(entry)}
    return dict(sorted(found.items()))


def unfinished(directory: Path) -> list[Path]:
    """Return the folders that a killed process left half written."""
    return sorted(directory.glob("[0-9]*.orbax-checkpoint-tmp*"))


def write_manifest(folder: Path) -> None:
    """Write the manifest of a checkpoint that has just been written."""
    write_json(folder / MANIFEST, {str(path.relative_to(folder)): _describe(path) for path in _files(folder)})


def check_files(folder: Path) -> None:
    """Check that the files of a checkpoint exist and have their sizes, and that small ones have their content.

    Raises:
      DamagedError: naming the first file that differs.
    """
    for part in ("state/_METADATA", "data/metadata"):
        if not (folder / part).is_file():
            raise DamagedError(f"checkpoint {folder}: damaged: has no {part}")
    if not (folder / MANIFEST).is_file():  # killed between the last rename and the manifest
        return
    for name, expected in _read_json(folder / MANIFEST).items():
        path = folder / name
        found = _describe(path) if path.is_file() else None
        if found is None:
            raise DamagedError(f"checkpoint {folder}: damaged: has no {name}")
        if found["bytes"] != expected.get("bytes"):
            raise DamagedError(
                f"checkpoint {folder}: damaged: {name} has {found['bytes']} bytes, expected {expected.get('bytes')}"
            )
        if found != expected:
            raise DamagedError(f"checkpoint {folder}: damaged: {name} has other content than was written")


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of a checkpoint by name; None if no evaluation of it is complete."""
    try:
        return _read_json(folder / METRICS)
    except DamagedError:
        return None


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write the metrics of a checkpoint."""
    write_json(folder / METRICS, metrics)


def by_rank(folders: Mapping[int, Path], config: ConfigDict) -> list[int]:
    """Return the steps that have the metric `config.best_metric`, best first; of equal ones the earlier first."""
    values = {}
    for step, folder in folders.items():
        value = (read_metrics(folder) or {}).get(config.best_metric)
        if isinstance(value, int | float):
            values[step] = value if config.best_is_lowest else -value
    return sorted(values, key=lambda step: (values[step], step))


def kept_steps(folders: Mapping[int, Path], config: ConfigDict) -> set[int]:
    """Return the steps whose checkpoints are kept: the latest `config.keep` and the best `config.keep_best`."""
    best = by_rank(folders, config)[: config.keep_best] if config.keep_best else []
    return {*sorted(folders)[-max(1, config.keep) :], *best}


def checkpoint_folder(reference: str | Path) -> Path:
    """Return the folder of a checkpoint, which holds `state/`.

    Args:
      reference: Folder of a step, a converted checkpoint, a workdir or its `checkpoints` folder (for its newest step),
        or one of the last two with `@best` or `@STEP`.

    Raises:
      CheckpointError: if there is no such checkpoint.
    """
    path, choice = Path(reference), ""
    if not path.exists() and "@" in path.name:
        name, _, choice = path.name.rpartition("@")
        path = path.with_name(name) if name else path.parent
    if not choice and not path.name.endswith(".orbax-checkpoint-tmp") and (path / "state").is_dir():
        return path
    folders = next(filter(None, (step_folders(place) for place in (path, path / "checkpoints"))), {})
    if not folders:
        raise CheckpointError(f"checkpoint {reference}: no checkpoint there")
    if not choice:
        return folders[max(folders)]
    if choice == "best":
        return folders[_best(path, folders)]
    if not choice.isdigit() or int(choice) not in folders:
        raise CheckpointError(
            f"checkpoint {reference}: found no step {choice!r}, expected best or one of {', '.join(map(str, folders))}"
        )
    return folders[int(choice)]


def _best(path: Path, folders: Mapping[int, Path]) -> int:
    """Return the best step of a run, by the metric that its config names."""
    config = configs.find(next(iter(folders.values()))).checkpoint
    if not config.best_metric:
        raise CheckpointError(f"checkpoint {path}@best: the run's config.checkpoint.best_metric names no metric")
    ranked = by_rank(folders, config)
    if not ranked:
        raise CheckpointError(f"checkpoint {path}@best: no checkpoint of the run has the metric {config.best_metric!r}")
    return ranked[0]


def _is_finished(entry: Path) -> bool:
    return entry.name.isascii() and entry.name.isdigit() and entry.is_dir()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in OWN)


def _describe(path: Path) -> dict[str, int]:
    size = path.stat().st_size
    return {"bytes": size} | ({"crc32": zlib.crc32(path.read_bytes())} if size <= SMALL else {})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise DamagedError(f"checkpoint {path.parent}: damaged: {path.name} is no JSON object")
    return content

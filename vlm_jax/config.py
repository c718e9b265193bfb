"""Configs: locked `ml_collections` trees of numbers, strings and lists, one Python file per published run."""

import ast
import importlib
import importlib.util
import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config_rules import broken_rule
from vlm_jax.errors import ConfigError, UserError
from vlm_jax.files import write_atomically, write_json

SYSTEMS = "vlm_jax.systems"
"""Package that has one subpackage per system."""


MAY_CHANGE = ("steps", "epochs", "log_every", "debug_nans", "checkpoint", "evaluate", "mesh")
"""Keys and sections that may change when a run is resumed; a system's config module may name its own."""


def system_names() -> list[str]:
    """Return the names of all systems, sorted."""
    return sorted(
        entry.name for entry in pkgutil.iter_modules(importlib.import_module(SYSTEMS).__path__) if entry.ispkg
    )


def has_module(system: str, name: str) -> bool:
    """Return whether a system has a module of that name."""
    return importlib.util.find_spec(f"{SYSTEMS}.{system}.{name}") is not None


def system_module(system: str, name: str) -> ModuleType:
    """Return a module of a system, such as `system_module("milnce", "task")`."""
    return importlib.import_module(f"{SYSTEMS}.{system}.{name}")


def base_config() -> ConfigDict:
    """Return the keys that all configs share, with their defaults; not locked, as a config adds its own keys."""
    return ConfigDict(
        {
            "task": "",
            "seed": 1,
            # Number of examples per global batch, and number of groups of it that are computed separately, as the
            # processes of a reference implementation did.
            "batch_size": 1,
            "batch_groups": 1,
            # Length of the run, as one of the two; the other one is 0.
            "steps": 0,
            "epochs": 0,
            # Sources of a new run's variables: paths, 'released:NAME', or mappings with the fields of
            # `train.initialise.Source`. A variable that no source gives must match a pattern that leaves it fresh.
            "init_from": (),
            # Regular expressions for variables that stay fresh in any case. They are matched with names such as
            # 'a/b/kernel', and with the collection, as in 'batch_stats/a/b/mean'.
            "init_fresh": (),
            "log_every": 10,
            "debug_nans": False,
            "matmul_precision": "default",
            # If true, batches are noise in the right shapes instead of data, for smoke runs and benchmarks.
            "data": {"synthetic": False},
            "optimizer": {
                "name": "adam",
                "b1": 0.9,
                "b2": 0.999,
                "epsilon": 1e-8,
                # If true, adam and adamw add epsilon to sqrt(v) before bias correction, not after it.
                "epsilon_before_correction": False,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.0,
                "clip_norm": 0.0,
                "ema_decay": 0.0,
                "ema_after_init_from": False,
                # [[regular expression on 'a/b/kernel', learning-rate factor, weight decay], ...]; the first match wins.
                "groups": [],
            },
            "schedule": {
                "name": "constant",
                "learning_rate": 1e-3,
                # Batch size that the rates are given for: they are scaled by batch_size / reference_batch_size. With 0,
                # they do not depend on the batch size.
                "reference_batch_size": 0,
                "warmup_steps": 0,
                "warmup_epochs": 0,
                "warmup_start": 0.0,
                "warmup_inclusive": False,
                "warmup_by_epoch": False,
                "decay_steps": 0,
                "final_learning_rate": 0.0,
                "boundary_steps": [],
                "boundary_epochs": [],
                "decay_factor": 0.1,
            },
            "checkpoint": {
                "every_steps": 0,
                "every_epochs": 0,
                "keep": 10,
                "keep_best": 0,
                "best_metric": "",
                "best_is_lowest": False,
            },
            "evaluate": {"every_steps": 0, "every_epochs": 0, "at_start": False, "names": [], "batch_size": 8},
            "mesh": {"data": -1, "model": 1},
        }
    )


def load(reference: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load `path.py[:variant]`, apply `--config.a.b=value` overrides and lock the result.

    Raises:
      ConfigError: if the file or variant is missing, a key is unknown, or a value has another type or is impossible.
    """
    path, _, variant = reference.partition(":")
    config = _made(path, variant)
    config.lock()
    for override in overrides:
        apply_override(config, override)
    check(config)
    return config


def sibling(file: str, name: str, variant: str = "") -> ConfigDict:
    """Return the config of another file of the folder, not locked, for a config that differs from it in a few keys.

    Args:
      file: `__file__` of the calling config.
      name: Name of the other file, such as 'groundnlq_scratch.py'.
      variant: Variant of the other config.
    """
    return _made(str(Path(file).parent / name), variant)


def apply_override(config: ConfigDict, override: str) -> None:
    """Apply one override `--config.a.b=value`.

    Raises:
      ConfigError: if it has no `=`, names a key that the config does not have, or gives a value of another type.
    """
    key, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals or not key:
        raise ConfigError(f"override {override!r}: expected --config.key=value")
    node = config
    *parents, leaf = key.split(".")
    for part in parents:
        if not isinstance(node, ConfigDict) or part not in node:
            raise ConfigError(f"override {key}: the config has no key {part!r}{_nearest(part, node)}")
        node = node[part]
    if not isinstance(node, ConfigDict) or leaf not in node:
        raise ConfigError(f"override {key}: the config has no key {leaf!r}{_nearest(leaf, node)}")
    current = node[leaf]
    if isinstance(current, ConfigDict):
        raise ConfigError(f"override {key}: names a section, with keys {', '.join(current)}; set one of them")
    value = _parsed(text, current)
    if value is None:
        raise ConfigError(f"override {key}: expected {type(current).__name__}, found {text!r}")
    try:
        node[leaf] = value
    except TypeError:
        raise ConfigError(f"override {key}: expected {type(current).__name__}, found {text!r}") from None


def describe(config: ConfigDict) -> None:
    """Set the keys of a config that its training data decide: widths, strides, rates, sources of features.

    Synthetic batches, a system whose data decide no key, and missing data leave the config unchanged.

    Raises:
      DataError: if the protocol of the data is damaged.
    """
    module = system_module(config.task, "config")
    if hasattr(module, "describe") and not config.data.synthetic:
        set_keys(config, module.describe(config))


def adopt(config: ConfigDict, trained: ConfigDict) -> None:
    """Copy the keys that training data decide from a checkpoint's config, if both are of the same system."""
    if trained.task == config.task:
        flat = trained.to_dict()
        keys = getattr(system_module(config.task, "config"), "DESCRIBED", ())
        set_keys(config, {key: value for key in keys if (value := _at(flat, key)) is not None})


def set_keys(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Set keys such as 'model.dim'; a mapping replaces a whole section."""
    with config.unlocked():
        for key, value in values.items():
            *parents, leaf = key.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            node[leaf] = ConfigDict(value) if isinstance(value, Mapping) else value


def _at(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key such as 'model.dim'; None if a config of an earlier version lacks it."""
    section, _, leaf = key.rpartition(".")
    return (_at(tree, section) or {}).get(leaf) if section else tree.get(leaf)


def starts_fresh(config: ConfigDict, name: str) -> bool:
    """Return whether a variable may keep its initial value, as no source is read or a pattern leaves it fresh.

    Args:
      config: Config with the keys `init_from` and `init_fresh`.
      name: Name of the variable, such as 'text/word_embd'.
    """
    patterns = list(config.init_fresh)
    for entry in config.init_from:
        fresh = () if isinstance(entry, str) else entry.get("fresh", ())
        patterns += [fresh] if isinstance(fresh, str) else fresh
    return not config.init_from or any(re.search(pattern, name) for pattern in patterns)


def check(config: ConfigDict) -> None:
    """Check the values that are restricted for every system.

    Raises:
      ConfigError: naming the key, what was found and what was expected.
    """
    if config.task not in system_names():
        raise ConfigError(f"config.task: {config.task!r} is not one of {', '.join(system_names())}")
    values = _flat(config.to_dict())
    if broken := broken_rule(values):
        key, expected = broken
        raise ConfigError(f"config.{key}: expected {expected}, found {values[key]!r}")
    if config.batch_size % config.batch_groups:
        raise ConfigError(
            f"config.batch_groups: {config.batch_groups} does not divide config.batch_size = {config.batch_size}"
        )
    if config.batch_size % config.data.get("streams", 1):
        raise ConfigError(
            f"config.data.streams: {config.data.streams} does not divide config.batch_size = {config.batch_size}"
        )
    if bool(config.steps) == bool(config.epochs):
        raise ConfigError(
            f"config: give either steps or epochs, found steps = {config.steps} and epochs = {config.epochs}"
        )


def changes(config: ConfigDict, run: ConfigDict) -> tuple[list[str], list[str]]:
    """Return the differences between a config and that of the run that it resumes, one line per key.

    Keys in `MAY_CHANGE`, here and in the system's config module, may change: logging, evaluation, the number of
    checkpoints kept, the length of the run, its devices, and the paths of its data. Keys that only one of the two
    configs has are not compared.

    Returns:
      Lines for keys that may change, and lines for keys that may not.
    """
    allowed, refused = [], []
    free = (*MAY_CHANGE, *getattr(system_module(config.task, "config"), "MAY_CHANGE", ()))
    ours, theirs = (_flat(json.loads(json.dumps(one.to_dict()))) for one in (config, run))
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key]:
            may = any(key == name or key.startswith(f"{name}.") for name in free)
            (allowed if may else refused).append(f"config.{key}: {theirs[key]!r} in the run, now {ours[key]!r}")
    return allowed, refused


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def carry_files(config: ConfigDict, folder: Path) -> None:
    """Copy small files that a run needs beside its data, such as a word list, into its folder.

    The keys `CARRIED` of the system's config module name them; `find` uses the copies.
    """
    for given, own in _carried(config, folder).values():
        if given.is_file() and not (own.is_file() and own.samefile(given)):
            write_atomically(own, given.read_bytes())


def check_carried_files(config: ConfigDict, folder: Path) -> None:
    """Check that the files of a config are those that a run began with.

    Raises:
      ConfigError: if a file has other content.
    """
    for key, (given, own) in _carried(config, folder).items():
        if given.is_file() and own.is_file() and given.read_bytes() != own.read_bytes():
            raise ConfigError(f"config.{key}: {given} has other content than {own}, which the run began with")


def use_carried_files(config: ConfigDict, folder: Path, *, where_missing: bool = False) -> None:
    """Set the paths of files in a run's config to the run's own copies.

    Args:
      config: Config to change.
      folder: Folder with the copies.
      where_missing: If true, only paths that do not exist are changed.
    """
    carried = _carried(config, folder).items()
    found = {key: str(own) for key, (given, own) in carried if own.is_file()}
    set_keys(
        config, {key: own for key, own in found.items() if not where_missing or not Path(_at(config, key)).exists()}
    )


def _carried(config: ConfigDict, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the file that a config names and the path of the run's copy, by key."""
    keys = getattr(system_module(config.task, "config"), "CARRIED", ()) if config.task in system_names() else ()
    given = {key: _at(config, key) for key in keys}
    return {key: (Path(value), folder / f"{key}{Path(value).suffix}") for key, value in given.items() if value}


def write(config: ConfigDict, path: Path) -> None:
    """Write the resolved config as JSON."""
    write_json(path, config.to_dict())


def read(path: Path) -> ConfigDict:
    """Read a config that `write` wrote.

    Raises:
      ConfigError: if the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found a {type(content).__name__}")
        config = ConfigDict(content)
        config.lock()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the config.json of a workdir") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a JSON config ({error})") from None
    return config


def find(checkpoint: Path) -> ConfigDict:
    """Return the config of a checkpoint, with the run's own copies of files.

    Its config.json lies in the checkpoint's folder or the nearest of the two above.

    Raises:
      ConfigError: if there is no config.json.
    """
    for folder in (checkpoint, *checkpoint.absolute().parents[:2]):
        if (folder / "config.json").is_file():
            config = read(folder / "config.json")
            use_carried_files(config, folder)
            return config
    raise ConfigError(f"checkpoint {checkpoint}: no config.json in its folder or above")


def _made(path: str, variant: str) -> ConfigDict:
    if not Path(path).is_file():
        raise ConfigError(f"config {path}: no such file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise ConfigError(f"config {path}: expected a Python file, such as those of configs/")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # the user's file can raise anything
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"config {path}: cannot be loaded: {type(error).__name__}: {said}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config {path}: has no function get_config(variant)")
    variants = getattr(module, "VARIANTS", ())
    if variant and variant not in variants:
        raise ConfigError(f"config {path}: no variant {variant!r}; it has {', '.join(variants) or 'none'}")
    return module.get_config(variant)


def _parsed(text: str, current: object) -> object:
    """Parse a text as a value that replaces the current one; return None if it cannot be parsed."""
    if isinstance(current, str):
        return text
    # A sequence of names may be given as one bare name, such as a path.
    of_names = isinstance(current, tuple | list) and all(isinstance(entry, str | dict) for entry in current)
    if of_names and not text:
        return type(current)()
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return type(current)([text]) if of_names and text[0] not in "([{" else None
    if of_names and isinstance(value, str | dict):
        value = [value]
    return type(current)(value) if isinstance(current, tuple | list) and isinstance(value, tuple | list) else value


def _nearest(word: str, node: object) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(node), n=1) if isinstance(node, ConfigDict) else []
    return f"; did you mean {close[0]!r}?" if close else ""

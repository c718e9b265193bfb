"""Initial variables of a run that does not resume: fresh ones, replaced by those of checkpoints and files."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax import references
from vlm_jax.errors import ConfigError
from vlm_jax.task import Task
from vlm_jax.train.checkpoint import CheckpointError, checkpoint_folder, restore_arrays, stored_shapes
from vlm_jax.train.optimizer import path_name
from vlm_jax.train.setup import Setup
from vlm_jax.train.state import TrainState
from vlm_jax.types import PyTree, Variables

SHOWN = 3
"""Number of names that a printed line lists."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `config.init_from`.

    Attributes:
      source: Workdir, `WORKDIR@best`, `WORKDIR@STEP`, step folder, converted checkpoint, `released:NAME`, or a
        file of a reference implementation.
      read: Path prefix in the source, without the collection, such as 'video'; only arrays below it are read. '' for
        all.
      write: Path prefix in the model that replaces `read`; '' for the model's root.
      fresh: Regular expressions on the model's names; variables that match are not taken from this source.
      system: Name of the system whose interop converts a reference's file; '' for `config.task`.
      average: If true, read the running average of the parameters instead of the parameters.
    """

    source: str
    read: str = ""
    write: str = ""
    fresh: tuple[str, ...] = ()
    system: str = ""
    average: bool = False

    def target(self, path: str) -> str | None:
        """Return the model's path for a path of the source, such as 'params/a/b'; None outside of `read`."""
        collection, _, name = path.partition("/")
        if not _is_below(self.read, name):
            return None
        return "/".join(part for part in (collection, self.write, name[len(self.read) :].strip("/")) if part)

    def writes(self, path: str) -> bool:
        """Return whether a path of the model, such as 'params/a/b', lies below `write`."""
        return _is_below(self.write, path.partition("/")[2])


@dataclasses.dataclass(frozen=True)
class _Contents:
    """Contents of an opened source.

    Attributes:
      shapes: Shapes of all arrays by path, such as 'params/a/b'.
      read: Function that returns chosen arrays, given their shapes, types and shardings by path.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Part:
    """Assignment of one source's arrays to the model's variables.

    Attributes:
      source: Entry of the config.
      contents: Arrays of the source.
      taken: Path in the source, by path in the model.
      fresh: Paths in the model that an expression leaves fresh.
      unused: Paths in the source that the model does not have.
    """

    source: Source
    contents: _Contents
    taken: Mapping[str, str]
    fresh: Sequence[str]
    unused: Sequence[str]

    def report(self) -> str:
        return (
            f"{self.source.source}: {len(self.taken)} arrays taken, {_counted(self.fresh, 'left fresh')}, "
            f"{_counted(self.unused, 'unused')}"
        )


def initialise(task: Task, config: ConfigDict, setup: Setup, say: Callable[[str], None]) -> TrainState:
    """Create the state of a run at step 0: fresh variables, then the sources of `config.init_from`, then `after_init`.

    All sources are checked against the model before anything is allocated.

    Args:
      task: Task whose model is initialised; its `run_state` is always fresh.
      config: Config with the keys `init_from`, `init_fresh`, `optimizer.ema_after_init_from` and `seed`.
      setup: Shapes and shardings of the state.
      say: Function that takes one line for each source, and one for what is fresh.

    Raises:
      ConfigError: if an entry cannot be used, or a variable is given by no source or by two.
      CheckpointError: if a source is missing, gives nothing, or has an array of another shape.
      UserError: if a reference's file cannot be read.
    """
    abstract = {name: tree for name, tree in setup.abstract.variables().items() if name not in task.run_state}
    wanted = _by_path(abstract)
    parts = _plan(task, config, wanted) if config.init_from else []

    state = setup.create(jax.random.key(config.seed))
    found: dict[str, Any] = {}
    for part in parts:
        arrays = part.contents.read({theirs: wanted[ours] for ours, theirs in part.taken.items()})
        found |= {ours: arrays[theirs] for ours, theirs in part.taken.items()}
        say(part.report())
    if parts:
        fresh = [path for path in wanted if path not in found]
        say(f"initialised {len(found)} arrays from {len(parts)} sources, {_counted(fresh, 'fresh')}")
    variables = jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(path_name(path), leaf), state.variables())
    if task.after_init:
        variables = task.after_init(variables)
    if parts or task.after_init:
        state = _with_variables(state, variables, setup)
    if parts and state.ema_params is not None and config.optimizer.ema_after_init_from:
        state = state.replace(ema_params=jax.tree.map(jax.numpy.copy, state.params))
    return state


def read_sources(entries: Iterable[str | Mapping[str, Any]]) -> list[Source]:
    """Parse the entries of `config.init_from`, each of which is a text or a mapping with the fields of `Source`.

    Raises:
      ConfigError: naming the entry and its field.
    """
    defaults = vars(Source(""))
    sources = []
    for number, entry in enumerate(entries):
        key = f"config.init_from[{number}]"
        values = {"source": entry} if isinstance(entry, str) else dict(entry)
        if isinstance(values.get("fresh"), str | list):  # a list where the config was read from JSON
            values["fresh"] = (values["fresh"],) if isinstance(values["fresh"], str) else tuple(values["fresh"])
        for name, value in values.items():
            if name not in defaults:
                raise ConfigError(f"{key}: {name!r} is not one of {', '.join(defaults)}")
            if not isinstance(value, type(defaults[name])):
                raise ConfigError(f"{key}.{name}: expected {type(defaults[name]).__name__}, found {value!r}")
        if not values.get("source"):
            raise ConfigError(f"{key}.source: expected a path or released:NAME, found nothing")
        prefixes = {name: values.get(name, "").strip("/") for name in ("read", "write")}
        sources.append(Source(**{**values, **prefixes}))
    return sources


def check_sources(config: ConfigDict, checkpoint: Path) -> None:
    """Check that a config reads the kind of features that a checkpoint of its system was trained on.

    The keys `data.*_source` are compared.

    Raises:
      ConfigError: naming the first key that differs, or if there is no config.json for the checkpoint.
    """
    if not any(key.endswith("_source") for key in config.data):
        return
    trained = configs.find(checkpoint)
    _check_trained(config, trained, checkpoint)


def _check_trained(config: ConfigDict, trained: ConfigDict, checkpoint: Path) -> None:
    if trained.task != config.task:
        return
    for key in (key for key in config.data if key.endswith("_source")):
        if key in trained.data and trained.data[key] != config.data[key]:
            meaning = "" if trained.data[key] else ": the features that its reference published, and no others"
            raise ConfigError(
                f"config.data.{key}: {config.data[key]!r}, but {checkpoint} was trained with {trained.data[key]!r}"
                + meaning
            )


def _plan(task: Task, config: ConfigDict, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> list[_Part]:
    """Assign every variable to the source that gives it, or leave it fresh.

    Raises:
      ConfigError: if an entry cannot be used, or a variable is given by no source or by two.
      CheckpointError: if a source is missing, gives nothing, or has an array of another shape.
    """
    _check_expressions("config.init_fresh", config.init_fresh, wanted)
    parts: list[_Part] = []
    given: dict[str, Source] = {}
    left_out: set[str] = set()
    for number, source in enumerate(read_sources(config.init_from)):
        below = [path for path in wanted if source.writes(path)]
        if not below:
            raise ConfigError(
                f"config.init_from[{number}].write: the model has nothing below {source.write!r}; "
                f"it has {next(iter(wanted))}"
            )
        _check_expressions(f"config.init_from[{number}].fresh", source.fresh, below)
        contents = _open(source, task, config)
        taken: dict[str, str] = {}
        fresh, unused = [], []
        for theirs in contents.shapes:
            ours = source.target(theirs)
            if ours is None or theirs.partition("/")[0] in task.run_state:
                continue
            if ours not in wanted:
                unused.append(theirs)
            elif _matches((*config.init_fresh, *source.fresh), ours):
                fresh.append(ours)
            else:
                taken[ours] = theirs
        _check_part(source, contents, taken, wanted)
        for ours in taken:
            if ours in given:
                raise ConfigError(
                    f"config.init_from: {ours} is given by {given[ours].source} and by {source.source}; "
                    "the key 'fresh' of one of them leaves it to the other"
                )
            given[ours] = source
        left_out |= {ours for ours in below if _matches(source.fresh, ours)}
        parts.append(_Part(source, contents, taken, fresh, unused))
    missing = [
        ours for ours in wanted if ours not in given and ours not in left_out and not _matches(config.init_fresh, ours)
    ]
    if missing:
        raise ConfigError(
            f"config.init_from: no source gives {missing[0]}{_more(missing)}; name what shall start fresh in "
            "config.init_fresh"
        )
    return parts


def _check_part(
    source: Source,
    contents: _Contents,
    taken: Mapping[str, str],
    wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> None:
    shapes = {ours: (contents.shapes[theirs], tuple(wanted[ours].shape)) for ours, theirs in taken.items()}
    wrong = [ours for ours, (found, expected) in shapes.items() if found != expected]
    if wrong:
        found, expected = shapes[wrong[0]]
        raise CheckpointError(
            f"config.init_from: {source.source}: its {taken[wrong[0]]} is {found}, the model's {wrong[0]} is "
            f"{expected}{_more(wrong)}; config.init_fresh names what shall start fresh"
        )
    if not taken:
        prefixes = f" (read {source.read!r}, write {source.write!r})" if source.read or source.write else ""
        raise CheckpointError(
            f"config.init_from: {source.source}: none of its {len(contents.shapes)} arrays, such as "
            f"{next(iter(contents.shapes), 'none')}, is taken by the model{prefixes}; it has {next(iter(wanted))}"
        )


def _open(source: Source, task: Task, config: ConfigDict) -> _Contents:
    if source.source.startswith(references.PREFIX):
        files = references.fetch_released(source.source)
        return _open_file(source, files.source, files.system, config)
    path = Path(source.source)
    if path.is_file():
        return _open_file(source, path, source.system or config.task, config)
    folder = checkpoint_folder(path)
    check_sources(config, folder)
    shapes = stored_shapes(folder)
    params = "ema_params" if source.average else "params"
    places = {}
    for name in shapes:
        for stored, ours in ((f"{params}/", "params/"), ("model_state/", "")):
            if name.startswith(stored):
                places[ours + name.removeprefix(stored)] = name
    if source.average and not any(name.startswith("ema_params/") for name in shapes):
        raise CheckpointError(f"checkpoint {folder}: holds no running average")

    def read(chosen: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        arrays = restore_arrays(folder, {places[name]: spec for name, spec in chosen.items()})
        return {name: arrays[places[name]] for name in chosen}

    return _Contents({name: shapes[place] for name, place in places.items()}, read)


def _open_file(source: Source, path: Path, system: str, config: ConfigDict) -> _Contents:
    if system not in references.convertible():
        raise ConfigError(
            f"config.init_from: {path}: {system!r} is not one of {', '.join(references.convertible())}, "
            "the systems whose files can be read"
        )
    arrays = references.read_arrays(system, path, average=source.average)
    _check_trained(config, references.config_of(system, arrays), path)
    held = _by_path(configs.system_module(system, "interop").to_variables(arrays))

    def read(chosen: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        return {name: np.asarray(held[name], spec.dtype) for name, spec in chosen.items()}

    return _Contents({name: tuple(array.shape) for name, array in held.items()}, read)


def _by_path(variables: Variables) -> dict[str, Any]:
    """Return the leaves of a tree by path, such as 'params/a/b'."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def _is_below(prefix: str, name: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}/")


def _matches(expressions: Iterable[str], path: str) -> bool:
    """Return whether an expression matches a part of a path such as 'params/a/b', or of its name 'a/b'."""
    name = path.partition("/")[2]
    return any(re.search(expression, name) or re.search(expression, path) for expression in expressions)


def _check_expressions(key: str, expressions: Iterable[str], wanted: Iterable[str]) -> None:
    for expression in expressions:
        try:
            found = any(_matches((expression,), path) for path in wanted)
        except re.error as error:
            raise ConfigError(f"{key}: {expression!r} is no regular expression ({error})") from None
        if not found:
            example = next(iter(wanted)).partition("/")[2]
            raise ConfigError(f"{key}: {expression!r} matches no variable, such as {example!r}")


def _with_variables(state: TrainState, variables: PyTree, setup: Setup) -> TrainState:
    model_state = {name: value for name, value in variables.items() if name != "params"}
    return state.replace(
        params=jax.device_put(variables["params"], setup.places.params),
        model_state=jax.device_put(model_state, setup.places.model_state),
    )


def _counted(names: Sequence[str], what: str) -> str:
    if not names:
        return f"none {what}"
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if names[SHOWN:] else ''})"


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if names[1:] else ""

"""Orbax checkpoints of runs (`Checkpoints`) and of variables alone (`save_variables`, `restore_variables`).

Both have one form on disk. `state/` holds the arrays. `data/` holds a JSON object with the data position or the origin,
and the checksums of the arrays. `files.json` holds the sizes of all files.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vlm_jax.train import step_folders
from vlm_jax.train.checksums import checksums
from vlm_jax.train.optimizer import path_name
from vlm_jax.train.state import TrainState
from vlm_jax.train.step_folders import CheckpointError, DamagedError, checkpoint_folder
from vlm_jax.types import PyTree, Variables

QUIET = ("_CHECKPOINT_METADATA", "temporary directory")
"""Words of needless warnings: `state/` of a step, read alone, has no description; a killed save left files behind."""
# Orbax logs errors of its threads with their stack, and `Checkpoints.wait` raises them anyway.
logging.getLogger("absl").addFilter(
    lambda record: not record.exc_info and not any(words in record.getMessage() for words in QUIET)
)
logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())
OVERHEAD = 1 << 20
"""Bytes that a checkpoint may take in addition to its arrays."""


class Checkpoints:
    """Checkpoints of one run, in `workdir/checkpoints/STEP`; all processes call every method.

    Args:
      directory: Folder of the checkpoints; the first save creates it.
      config: `config.checkpoint`, with the numbers of latest and best checkpoints to keep.

    Raises:
      CheckpointError: if the best checkpoints are to be kept but no metric ranks them.
    """

    def __init__(self, directory: Path, config: ConfigDict) -> None:
        if config.keep_best and not config.best_metric:
            raise CheckpointError("config.checkpoint.best_metric: must name a metric where keep_best is set")
        self.directory, self.config = directory.absolute(), config
        self.first = jax.process_index() == 0
        self.writing: Path | None = None
        self.writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def steps(self) -> list[int]:
        """Return the steps of finished checkpoints, oldest first, the same on every process."""
        found = list(step_folders.step_folders(self.directory))
        if jax.process_count() == 1:
            return found
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(found))))
        steps = np.zeros(count, np.int32)
        if self.first:
            steps[:] = found
        return multihost_utils.broadcast_one_to_all(steps).tolist()

    def latest_step(self) -> int | None:
        """Return the step of the newest finished checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def save(self, state: TrainState, position: int) -> None:
        """Save in the background; a step that is already saved is left as it is.

        Args:
          state: State after the step `state.step`.
          position: Position in the data stream, the number of examples consumed.

        Raises:
          CheckpointError: if an array is not finite, or this or the previous checkpoint cannot be written.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps():
            return
        sums, infinite = checksums(state)
        if infinite:
            more = f" (and {len(infinite) - 1} more)" if infinite[1:] else ""
            raise CheckpointError(
                f"step {step}: {infinite[0]}{more} is not finite after this update; not saved, and the last checkpoint "
                "before it was kept"
            )
        folder = self._folder(step)
        self._check_space(folder, OVERHEAD + sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        if self.first:
            with _one_line(folder):
                self.directory.mkdir(parents=True, exist_ok=True)
                for stale in step_folders.unfinished(self.directory):
                    shutil.rmtree(stale, ignore_errors=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"saving {folder.name}")
        self.writing = folder
        with _one_line(folder):
            self.writer.save(folder, args=_arguments(state, {"position": position, "checksums": sums}), force=True)

    def wait(self) -> None:
        """Wait for the save in progress, then delete the checkpoints that are not kept.

        Raises:
          CheckpointError: if the checkpoint cannot be written.
        """
        if self.writing is None:
            return
        folder, self.writing = self.writing, None
        with _one_line(folder):
            self.writer.wait_until_finished()
            if self.first:
                step_folders.write_manifest(folder)
                self._delete()

    def is_evaluated(self, step: int) -> bool:
        """Return whether the evaluation of a step's checkpoint is complete."""
        found = step_folders.read_metrics(self._folder(step)) is not None
        return bool(multihost_utils.broadcast_one_to_all(np.int32(found))) if jax.process_count() > 1 else found

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a saved step; they decide which checkpoints are the best.

        Raises:
          CheckpointError: if the metric that ranks checkpoints is missing, or the file cannot be written.
        """
        self.wait()
        wanted = self.config.best_metric
        if wanted and self.config.keep_best and wanted not in metrics:
            raise CheckpointError(
                f"config.checkpoint.best_metric: {wanted!r} is not one of {', '.join(sorted(metrics))}"
            )
        if self.first:
            with _one_line(self._folder(step)):
                step_folders.write_metrics(self._folder(step), metrics)
                self._delete()

    def restore(self, state: TrainState, batch_size: int, say: Callable[[str], None]) -> tuple[TrainState, int]:
        """Return the state and the data position of the newest checkpoint that is not damaged.

        The folders of newer checkpoints, which are damaged, are renamed to `STEP.damaged`.

        Args:
          state: Shapes, types and shardings of the state to restore.
          batch_size: Number of examples per step, against which the position is checked.
          say: Function that takes one line for every damaged checkpoint.

        Raises:
          CheckpointError: if it holds other arrays than `state`, or every checkpoint is damaged.
        """
        damaged: list[tuple[Path, str]] = []
        for step in reversed(self.steps()):
            folder = self._folder(step)
            found, problem = None, ""
            try:
                found = _read_run(folder, state, step, batch_size)
            except DamagedError as error:
                problem = str(error)
            if _agree(found is not None):
                break
            damaged.append((folder, problem or f"checkpoint {folder}: damaged for another process"))
        else:
            raise CheckpointError(f"{damaged[0][1]}; no other checkpoint of the run can be read")
        for folder, problem in damaged:
            say(f"{problem}; resuming from step {step} instead")
            if self.first:
                aside = folder.with_name(f"{folder.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        return found

    def close(self) -> None:
        """Wait for the save in progress and close the writer.

        Raises:
          CheckpointError: if the checkpoint cannot be written.
        """
        with _one_line(self.writing or self.directory), contextlib.closing(self.writer):
            self.wait()

    def _check_space(self, folder: Path, needed: int) -> None:
        """Check that the disk has room before anything is written; all processes raise or none.

        A disk that fills up during the save is noticed by the writer.
        """
        place = next(place for place in folder.parents if place.exists())
        free = shutil.disk_usage(place).free
        if not _agree(free >= needed):
            raise CheckpointError(
                f"checkpoint {folder}: cannot be written: No space left on device: it may take {needed / 1e6:.1f} MB, "
                f"and {free / 1e6:.1f} MB are free"
            )

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def _delete(self) -> None:
        folders = step_folders.step_folders(self.directory)
        for step in folders.keys() - step_folders.kept_steps(folders, self.config):
            # Rename first, so that a half-deleted folder is never taken for a checkpoint.
            stale = folders[step].with_name(f"{folders[step].name}.orbax-checkpoint-tmp-deleted")
            folders[step].rename(stale)
            shutil.rmtree(stale)


def save_variables(path: Path, variables: Variables, origin: Mapping[str, Any]) -> None:
    """Write variables as a checkpoint that `restore_variables` and the evaluators read.

    Args:
      path: New or empty folder.
      variables: Variables of a model.
      origin: Origin of the variables, as JSON values.

    Raises:
      CheckpointError: if `path` is not empty or cannot be written.
    """
    if path.exists() and any(path.iterdir()):
        raise CheckpointError(f"checkpoint {path}: exists already and is not empty")
    state = {
        "params": variables["params"],
        "model_state": {name: value for name, value in variables.items() if name != "params"},
    }
    content = {**origin, "checksums": checksums(state)[0]}
    with _one_line(path), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute(), args=_arguments(state, content), force=True)
        step_folders.write_manifest(path)


def restore_variables(path: Path, variables: PyTree, *, average: bool = False) -> dict[str, Any]:
    """Return the variables of a checkpoint, of a run or converted, without the rest of the state.

    Args:
      path: Reference to a checkpoint, in any form that `checkpoint_folder` accepts.
      variables: Shapes, types and (where set) shardings of the variables to restore: `params` and the collections of
        the model state.
      average: If true, return the running average of the parameters instead of the parameters.

    Raises:
      CheckpointError: if there is no checkpoint, or it is of another model, is damaged or has no average.
    """
    folder = checkpoint_folder(path)
    try:
        return _restore_variables(folder, variables, average)
    except DamagedError as error:
        others = [step for step in step_folders.step_folders(folder.parent) if f"{step:08d}" != folder.name]
        advice = f"; {folder.parent.parent}@{others[-1]} names another checkpoint of the run" if others else ""
        raise DamagedError(f"{error}{advice}") from None


def _restore_variables(folder: Path, variables: PyTree, average: bool) -> dict[str, Any]:
    stored = stored_shapes(folder)
    params = "ema_params" if average else "params"
    if average:
        require_average(folder, stored)
    model_state = {name: value for name, value in variables.items() if name != "params"}
    wanted = {params: variables["params"], **({"model_state": model_state} if model_state else {})}
    # A run's checkpoint may hold collections that belong to the run and not to the model (`Task.run_state`).
    parts = {params, *(f"model_state/{name}" for name in model_state)}
    relevant = {name: shape for name, shape in stored.items() if any(name.startswith(f"{part}/") for part in parts)}
    _check_shapes(folder, relevant, wanted)
    restored = _restore(folder, wanted)
    return {"params": restored[params], **restored.get("model_state", {})}


def require_average(folder: Path, names: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds a running average of the parameters.

    Args:
      folder: Folder of the checkpoint, for the message.
      names: Arrays of the checkpoint by name.

    Raises:
      CheckpointError: if it holds none.
    """
    if not any(name.startswith("ema_params/") for name in names):
        raise CheckpointError(
            f"checkpoint {folder}: holds no running average of the parameters; its run had "
            "config.optimizer.ema_decay = 0, or it was converted without one"
        )


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all arrays of a checkpoint by name: 'params/a/b', 'model_state/batch_stats/a/b'.

    Raises:
      DamagedError: if its files are not those that were written.
    """
    step_folders.check_files(folder)
    with _damage(folder):
        metadata = ocp.PyTreeCheckpointHandler().metadata(folder.absolute() / "state")
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    return _shapes(tree)


def restore_arrays(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Return some arrays of a checkpoint by name, and read no others.

    Args:
      folder: Folder of a checkpoint, from `checkpoint_folder`.
      wanted: Shapes, types and (where set) shardings, by the names that `stored_shapes` returns.

    Raises:
      DamagedError: if an array cannot be read or its checksum is wrong.
    """
    restored = _restore(folder, traverse_util.unflatten_dict(dict(wanted), sep="/"))
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}


def _read_run(folder: Path, state: TrainState, step: int, batch_size: int) -> tuple[TrainState, int]:
    """Return the whole state of a run and its data position."""
    _check_shapes(folder, stored_shapes(folder), state)
    position = _read_data(folder).get("position")
    if position != step * batch_size:
        raise DamagedError(
            f"checkpoint {folder}: damaged: its data position is {position!r}, expected {step * batch_size}"
        )
    return _restore(folder, state), position


def _restore(folder: Path, wanted: PyTree) -> PyTree:
    """Return arrays of a checkpoint after comparing their checksums.

    It uses Orbax's handler without a checkpointer, so that no process waits for one that fails.
    """
    with _damage(folder):
        restored = ocp.PyTreeCheckpointHandler().restore(
            folder.absolute() / "state",
            args=ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            ),
        )
    expected = _read_data(folder).get("checksums", {})
    for name, found in checksums(restored)[0].items():
        # An array that was read as another type than it was written has no checksum to compare with.
        if found.split()[0] == expected.get(name, found).split()[0] and found != expected.get(name, found):
            raise DamagedError(
                f"checkpoint {folder}: damaged: the checksum of {name} is {found.split()[1]}, expected "
                f"{expected[name].split()[1]}"
            )
    return restored


def _arguments(state: PyTree, data: Mapping[str, Any]) -> ocp.args.Composite:
    return ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(dict(data)))


def _read_data(folder: Path) -> dict[str, Any]:
    with _damage(folder):
        return dict(ocp.JsonCheckpointHandler().restore(folder.absolute() / "data"))


def _agree(success: bool) -> bool:
    """Return whether all processes succeeded."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(success)))) if jax.process_count() > 1 else success


@contextlib.contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Raise DamagedError for what cannot be read; errors of the device, such as full memory, pass unchanged."""
    try:
        yield
    except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # tensorstore and Orbax raise bare exceptions as well
        raise DamagedError(f"checkpoint {folder}: damaged: {_first_line(error)}") from None


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Raise CheckpointError with one line if a checkpoint cannot be written, such as on a full disk."""
    try:
        yield
    except (CheckpointError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # tensorstore and Orbax raise bare exceptions as well
        raise CheckpointError(f"checkpoint {folder}: cannot be written: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """Return the first line of an error, or the system's message if tensorstore hides its code in a long text."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _check_shapes(folder: Path, stored: Mapping[str, tuple[int, ...]], wanted: PyTree) -> None:
    shapes = {name: shape for name, shape in _shapes(wanted).items() if not name.startswith("key")}
    stored = {name: shape for name, shape in stored.items() if not name.startswith("key")}
    problems = []
    for name in sorted(shapes.keys() | stored.keys()):
        if name not in stored:
            problems.append(f"has no {name}")
        elif name not in shapes:
            problems.append(f"has {name}, which the model has not")
        elif shapes[name] != stored[name]:
            problems.append(f"{name} is {stored[name]}, the model's is {shapes[name]}")
    if problems:
        raise CheckpointError(
            f"checkpoint {folder}: of another model or optimiser: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if problems[1:] else "")
        )

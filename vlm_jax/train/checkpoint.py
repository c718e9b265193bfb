"""Orbax checkpoints: of a run (`Checkpoints`) and of variables alone (`save_variables`, `restore_variables`).

Both lie on disk in one form: `state/` holds the arrays, `data/` a JSON with the data position or the origin.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from vlm_jax.errors import UserError
from vlm_jax.train.optimizer import path_name
from vlm_jax.train.state import TrainState
from vlm_jax.types import PyTree, Variables

# Orbax warns that `state/` of a step, read alone, has no description of its own.
logging.getLogger("absl").addFilter(lambda record: "_CHECKPOINT_METADATA" not in record.getMessage())


class CheckpointError(UserError):
    """A checkpoint that cannot be used; one line naming the folder."""


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/STEP`.

    Args:
      directory: Made if missing.
      config: `config.checkpoint`: how many latest and best ones stay.
    """

    def __init__(self, directory: Path, config: ConfigDict) -> None:
        self.directory = directory.absolute()
        policies: list[managers.PreservationPolicy] = [managers.LatestN(max(1, config.keep))]
        options: dict[str, Any] = {}
        if config.keep_best:
            if not config.best_metric:
                raise CheckpointError("config.checkpoint.best_metric: must name a metric where keep_best is set")
            sign = -1 if config.best_is_lowest else 1

            def rank(metrics: Mapping[str, float]) -> float:
                return sign * metrics[config.best_metric]

            best = managers.BestN(n=config.keep_best, get_metric_fn=rank, keep_checkpoints_without_metrics=False)
            policies.append(best)
            options = {"best_fn": rank, "best_mode": "max"}
        self.best_metric = config.best_metric if config.keep_best else ""
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy(policies), step_format_fixed_length=8, **options
            ),
            item_names=("state", "data"),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self.manager.latest_step()

    def save(self, state: TrainState, position: int, metrics: Mapping[str, float] | None = None) -> None:
        """Saves in the background; a step that is saved already is left as it is.

        Raises:
          CheckpointError: where metrics are given without the one that ranks checkpoints.
        """
        step = int(state.step)
        if step == self.manager.latest_step():
            return
        if metrics and self.best_metric and self.best_metric not in metrics:
            raise CheckpointError(
                f"config.checkpoint.best_metric: {self.best_metric!r} is not one of {', '.join(sorted(metrics))}"
            )
        self.manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave({"position": position})),
            metrics=dict(metrics) if metrics and self.best_metric else None,
            force=True,
        )

    def restore(self, state: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint, as arrays placed like the given shapes, and its data position.

        Raises:
          CheckpointError: where it holds other arrays than `state`.
        """
        step = self.manager.latest_step()
        folder = checkpoint_folder(self.directory, step)
        _check_shapes(folder, stored_shapes(folder), state)
        restored = self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore())
        )
        return restored["state"], int(restored["data"]["position"])

    def reached_preemption(self, step: int) -> bool:
        """Whether the processes agreed that one of them was told to stop."""
        return self.manager.reached_preemption(step)

    def close(self) -> None:
        """Waits for what is being written."""
        self.manager.wait_until_finished()
        self.manager.close()


def checkpoint_folder(path: Path, step: int | None = None) -> Path:
    """The folder that holds `state/`: `path` itself, or the newest (or given) step under it.

    Args:
      path: A step's folder, a converted checkpoint, a workdir or its `checkpoints` folder.
      step: Which step of a workdir.

    Raises:
      CheckpointError: where there is none.
    """
    if (path / "state").is_dir():
        return path
    for parent in (path, path / "checkpoints"):
        steps = sorted(entry for entry in parent.glob("[0-9]*") if (entry / "state").is_dir())
        if step is not None:
            steps = [entry for entry in steps if int(entry.name) == step]
        if steps:
            return steps[-1]
    raise CheckpointError(f"checkpoint {path}: no checkpoint there" + (f" of step {step}" if step is not None else ""))


def save_variables(path: Path, variables: Variables, origin: Mapping[str, Any]) -> None:
    """Writes variables as a checkpoint that `restore_variables` and the evaluators read.

    Raises:
      CheckpointError: where `path` holds something already.
    """
    if path.exists() and any(path.iterdir()):
        raise CheckpointError(f"checkpoint {path}: exists already and is not empty")
    state = {
        "params": variables["params"],
        "model_state": {name: value for name, value in variables.items() if name != "params"},
    }
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            path.absolute(),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(dict(origin))),
            force=True,
        )


def restore_variables(path: Path, variables: PyTree, *, average: bool = False) -> dict[str, Any]:
    """Variables alone, from a run's checkpoint or a converted one.

    Args:
      path: As `checkpoint_folder` takes it.
      variables: Shapes, types and (where set) shardings of what is wanted: `params` and the model state's collections.
      average: The running average of the parameters in place of the parameters.

    Raises:
      CheckpointError: where there is no checkpoint, or it is of another model.
    """
    folder = checkpoint_folder(Path(path))
    stored = stored_shapes(folder)
    params = "ema_params" if average and any(name.startswith("ema_params/") for name in stored) else "params"
    model_state = {name: value for name, value in variables.items() if name != "params"}
    wanted = {params: variables["params"], **({"model_state": model_state} if model_state else {})}
    # A run's checkpoint may hold more collections of the model state than a model has: those of the run itself.
    parts = {params, *(f"model_state/{name}" for name in model_state)}
    relevant = {name: shape for name, shape in stored.items() if any(name.startswith(f"{part}/") for part in parts)}
    _check_shapes(folder, relevant, wanted)
    restored = _restore(folder, wanted)
    return {"params": restored[params], **restored.get("model_state", {})}


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all arrays of a checkpoint by name: 'params/a/b', 'model_state/batch_stats/a/b'."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(folder.absolute() / "state")
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    return _shapes(tree)


def restore_arrays(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Return some of the arrays of a checkpoint, and read no others.

    Args:
      folder: As `checkpoint_folder` returns it.
      wanted: Shapes, types and (where set) shardings by name, as `stored_shapes` names them.
    """
    restored = _restore(folder, traverse_util.unflatten_dict(dict(wanted), sep="/"))
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(restored)}


def _restore(folder: Path, wanted: PyTree) -> PyTree:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(
            folder.absolute() / "state",
            args=ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            ),
        )


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

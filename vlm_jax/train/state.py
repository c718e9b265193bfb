"""State of a run: everything that a training step changes."""

import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from vlm_jax.types import ModelState, Params, PyTree, Variables


@flax.struct.dataclass
class TrainState:
    """State that is sharded, donated, saved and restored as one tree.

    Attributes:
      step: Number of updates made, int32 `[]`.
      params: Parameters that the optimiser trains.
      model_state: Variables that the model updates itself, such as batch statistics.
      opt_state: State of the optimiser.
      ema_params: Running average of the parameters, or None.
      key: Random key of the run; each step folds its number into it.
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: PyTree
    ema_params: Params | None
    key: jax.Array

    def variables(self, *, average: bool = False) -> dict[str, Any]:
        """Return Flax variables for evaluation.

        Args:
          average: If true and the run keeps a running average, use the averaged parameters.
        """
        params = self.ema_params if average and self.ema_params is not None else self.params
        return {"params": params, **self.model_state}


def create_state(
    variables: Variables, optimizer: optax.GradientTransformation, key: jax.Array, ema: bool
) -> TrainState:
    """Create a state at step 0 from freshly initialised variables; if `ema`, it keeps a running average of `params`."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        key=key,
    )


def fingerprint(variables: Variables) -> str:
    """Return a digest (SHA-256) of the names, shapes and values of all variables, the same on every process."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        spread = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        array = np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

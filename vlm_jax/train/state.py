"""Everything that a training step changes."""

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
    """Sharded, donated, checkpointed and restored as one.

    Attributes:
      step: Updates made.
      params: What the optimiser changes.
      model_state: What has memory and is not trained.
      opt_state: The optimiser's.
      ema_params: Running average of the parameters, or None.
      key: Random key of the run; a step folds its number into it.
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: PyTree
    ema_params: Params | None
    key: jax.Array

    def variables(self, *, average: bool = False) -> dict[str, Any]:
        """Flax variables for evaluation, with the averaged parameters if asked for."""
        params = self.ema_params if average and self.ema_params is not None else self.params
        return {"params": params, **self.model_state}


def create_state(
    variables: Variables, optimizer: optax.GradientTransformation, key: jax.Array, ema: bool
) -> TrainState:
    """A state at step 0 around freshly initialised variables."""
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

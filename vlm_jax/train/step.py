"""Training step: one update of the state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vlm_jax.task import Task
from vlm_jax.train.optimizer import clip_by_norm
from vlm_jax.train.schedule import Schedule
from vlm_jax.train.state import TrainState
from vlm_jax.types import Batch

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    clip_norm: float = 0.0,
    ema_decay: float = 0.0,
) -> TrainStep:
    """Make the pure function from a state and the global batch to the next state and its metrics; the caller jits it.

    Args:
      task: Task whose `loss_fn` is minimised.
      optimizer: Update rule, from `make_optimizer`.
      schedule: Schedule of the optimiser, for the metric `learning_rate`.
      clip_norm: Largest global norm of the gradients; 0 does not clip.
      ema_decay: Decay of the running average, for states that keep one.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        value_and_grad = jax.value_and_grad(task.loss_fn, has_aux=True)
        (loss, aux), gradients = value_and_grad(state.params, state.model_state, batch, key)
        metrics = {**aux.metrics, "loss": loss, "learning_rate": schedule(state.step)}
        if clip_norm:
            gradients, metrics["gradient_norm"] = clip_by_norm(gradients, clip_norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = jax.tree.map(lambda mean, p: ema_decay * mean + (1 - ema_decay) * p, ema_params, params)
        state = state.replace(
            step=state.step + 1,
            params=params,
            model_state=aux.model_state,
            opt_state=opt_state,
            ema_params=ema_params,
        )
        return state, {name: jnp.asarray(value) for name, value in metrics.items()}

    return step

"""Learning-rate schedules: a warm-up, then constant, cosine or steps.

They are written out because the reference implementations differ from optax in three points: the end of the warm-up,
the rate after the last step, and a warm-up that rises at epoch boundaries.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError

Schedule = Callable[[jax.Array | int], jax.Array]
NAMES = ("constant", "cosine", "multistep")


def make_schedule(
    config: ConfigDict, total_steps: int, steps_per_epoch: int, batch_size: int | None = None
) -> Schedule:
    """Return the learning rate as a function of the update's number, from 0.

    During the warm-up (`warmup_steps`, or `warmup_epochs`), the rate rises linearly from `warmup_start` times the base
    rate. It reaches the base rate one update after the warm-up, or at its last update with `warmup_inclusive`. With
    `warmup_by_epoch`, it rises only at epoch boundaries. After the warm-up:
      `constant`: the base rate.
      `cosine`: half a cosine down to `final_learning_rate` at `decay_steps` (0: the end of training). Beyond, it rises
        again, as in the references' formula.
      `multistep`: the base rate times `decay_factor` for each of `boundary_steps` and `boundary_epochs` reached.
    With `reference_batch_size`, the config's rates are those of a batch of that size, and all of them are multiplied by
    `batch_size / reference_batch_size` (linear scaling, Goyal et al. 2017).

    Args:
      config: `config.schedule`.
      total_steps: Number of updates of the whole run.
      steps_per_epoch: Number of updates per epoch, for settings that are given in epochs.
      batch_size: Number of examples per global batch; needed with `reference_batch_size`.

    Raises:
      ConfigError: if the name is unknown.
    """
    if config.name not in NAMES:
        raise ConfigError(f"config.schedule.name: {config.name!r} is not one of {', '.join(NAMES)}")
    scale = batch_size / config.reference_batch_size if config.reference_batch_size else 1.0
    base, final = scale * config.learning_rate, scale * config.final_learning_rate
    warmup = config.warmup_steps or config.warmup_epochs * steps_per_epoch
    unit = steps_per_epoch if config.warmup_by_epoch else 1
    rises = max(1, warmup // unit - int(config.warmup_inclusive))
    boundaries = [*config.boundary_steps, *(epoch * steps_per_epoch for epoch in config.boundary_epochs)]

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.result_type(float))
        if config.name == "cosine":
            progress = (step - warmup) / max(1, (config.decay_steps or total_steps) - warmup)
            factor = jnp.maximum(0.0, 0.5 * (1 + jnp.cos(jnp.pi * progress)))
            rate = final + (base - final) * factor
        elif config.name == "multistep":
            rate = base * config.decay_factor ** sum((step >= boundary for boundary in boundaries), start=0.0 * step)
        else:
            rate = jnp.full_like(step, base)
        rising = base * (config.warmup_start + (1 - config.warmup_start) * (step // unit) / rises)
        return jnp.where(step < warmup, rising, rate)

    return schedule

"""Optimisers with the update rules of torch, for groups of parameters that regular expressions select."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError
from vlm_jax.train.schedule import Schedule
from vlm_jax.types import Params, PyTree

NAMES = ("sgd", "adam", "adamw")


def make_optimizer(config: ConfigDict, schedule: Schedule, params: Params) -> optax.GradientTransformation:
    """Build the update rule.

    `sgd` and `adam` add the weight decay to the gradient; `adamw` subtracts it from the weight, as in torch. Each
    parameter takes the learning-rate factor and weight decay of the first of `config.groups` whose expression is
    found in its name. A parameter of no group takes the factor 1 and `config.weight_decay`.

    Args:
      config: `config.optimizer`.
      schedule: Learning rate by number of the update.
      params: Parameters, or their shapes.

    Raises:
      ConfigError: if the name is unknown, or a group matches no parameter.
    """
    if config.name not in NAMES:
        raise ConfigError(f"config.optimizer.name: {config.name!r} is not one of {', '.join(NAMES)}")
    factors, decays = _by_group(config, params)
    add_decay = _for_each_value(optax.add_decayed_weights, decays, neutral=0.0)
    scale = _for_each_value(optax.scale, factors, neutral=1.0)
    if config.name == "sgd":
        momentum = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
        rule = [add_decay, momentum]
    elif config.name == "adam":
        rule = [add_decay, _scale_by_adam(config)]
    else:
        rule = [_scale_by_adam(config), add_decay]
    return optax.chain(*rule, scale, optax.scale_by_learning_rate(schedule))


def clip_by_norm(gradients: PyTree, limit: float) -> tuple[PyTree, jax.Array]:
    """Scale gradients by `min(1, limit / (norm + 1e-6))`; also return their norm before scaling.

    This is the rule of torch; that of optax does not add 1e-6.
    """
    norm = optax.tree.norm(gradients)
    scale = jnp.minimum(1.0, limit / (norm + 1e-6))
    return jax.tree.map(lambda gradient: gradient * scale.astype(gradient.dtype), gradients), norm


def parameter_names(params: Params) -> list[str]:
    """Return names such as 'video/conv1/conv1/kernel', in the order of the tree's leaves."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def path_name(path: tuple) -> str:
    """Return a tree path as a name such as 'a/b/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_group(config: ConfigDict, params: Params) -> tuple[PyTree, PyTree]:
    """Return trees with the learning-rate factor and the weight decay of every parameter."""
    names = parameter_names(params)
    for expression, _, _ in config.groups:
        if not any(re.search(expression, name) for name in names):
            raise ConfigError(f"config.optimizer.groups: {expression!r} matches no parameter, such as {names[0]!r}")
    factors, decays = [], []
    for name in names:
        match = next((group for group in config.groups if re.search(group[0], name)), None)
        factors.append(match[1] if match else 1.0)
        decays.append(match[2] if match else config.weight_decay)
    structure = jax.tree.structure(params)
    return jax.tree.unflatten(structure, factors), jax.tree.unflatten(structure, decays)


def _for_each_value(
    make: Callable[[float], optax.GradientTransformation], values: PyTree, neutral: float
) -> optax.GradientTransformation:
    """Apply `make(value)` to the parameters that have this value, for every value but the neutral one."""
    transformations = [optax.identity()]
    for value in sorted(set(jax.tree.leaves(values)) - {neutral}):
        mask = jax.tree.map(lambda own, value=value: own == value, values)
        transformations.append(optax.masked(make(value), mask))
    return optax.chain(*transformations)


def _scale_by_adam(config: ConfigDict) -> optax.GradientTransformation:
    """Return Adam's direction, with epsilon added after bias correction, or before it (TensorFlow 1, Paddle 1)."""
    plain = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    if not config.epsilon_before_correction:
        return plain
    b1, b2 = config.b1, config.b2

    def update(updates: PyTree, state: optax.ScaleByAdamState, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        # expm1, because float32 would round 1 - b^t coarsely for b near 1.
        first, second = (-jnp.expm1(count * math.log(b)) if b else jnp.ones(()) for b in (b1, b2))
        scale = jnp.sqrt(second) / first
        updates = jax.tree.map(lambda m, v: scale.astype(m.dtype) * m / (jnp.sqrt(v) + config.epsilon), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(plain.init, update)

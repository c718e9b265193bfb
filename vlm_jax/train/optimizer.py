"""Optimisers with torch's update rules, over groups of parameters chosen by regular expressions."""

import math
import re

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError
from vlm_jax.train.schedule import Schedule
from vlm_jax.types import Params, PyTree

NAMES = ("sgd", "adam", "adamw")


def make_optimizer(config: ConfigDict, schedule: Schedule, params: Params) -> optax.GradientTransformation:
    """Builds the update rule.

    `sgd` and `adam` add the weight decay to the gradient, `adamw` subtracts it from the weight, as in torch. Each
    parameter takes the learning-rate factor and weight decay of the first of `config.groups` whose expression is
    found in its name, else 1 and `config.weight_decay`.

    Args:
      config: `config.optimizer`.
      schedule: Rate of every update.
      params: The parameters, or their shapes.

    Raises:
      ConfigError: for an unknown name, or a group that matches no parameter.
    """
    if config.name not in NAMES:
        raise ConfigError(f"config.optimizer.name: {config.name!r} is not one of {', '.join(NAMES)}")
    factors, decays = _by_group(config, params)
    if config.name == "sgd":
        momentum = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
        rule = [_add_decay(decays), momentum]
    elif config.name == "adam":
        rule = [_add_decay(decays), _scale_by_adam(config)]
    else:
        rule = [_scale_by_adam(config), _add_decay(decays)]
    return optax.chain(*rule, _scale_by(factors), optax.scale_by_learning_rate(schedule))


def clip_by_norm(gradients: PyTree, limit: float) -> tuple[PyTree, jax.Array]:
    """Scales gradients by `min(1, limit / (norm + 1e-6))` (torch's rule), and returns their norm before."""
    norm = optax.tree.norm(gradients)
    scale = jnp.minimum(1.0, limit / (norm + 1e-6))
    return jax.tree.map(lambda gradient: gradient * scale.astype(gradient.dtype), gradients), norm


def parameter_names(params: Params) -> list[str]:
    """Names such as 'video/conv1/conv1/kernel', in the order of the tree's leaves."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def path_name(path: tuple) -> str:
    """A tree path as 'a/b/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_group(config: ConfigDict, params: Params) -> tuple[PyTree, PyTree]:
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


def _scale_by_adam(config: ConfigDict) -> optax.GradientTransformation:
    """Adam's direction, with epsilon after the bias corrections or before them (TensorFlow 1, Paddle 1)."""
    plain = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    if not config.epsilon_before_correction:
        return plain
    b1, b2 = config.b1, config.b2

    def update(updates: PyTree, state: optax.ScaleByAdamState, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda mean, gradient: b1 * mean + (1 - b1) * gradient, state.mu, updates)
        nu = jax.tree.map(lambda mean, gradient: b2 * mean + (1 - b2) * jnp.square(gradient), state.nu, updates)
        # 1 - b^t, which float32 would round coarsely for b near 1.
        first, second = (-jnp.expm1(count * math.log(b)) if b else jnp.ones(()) for b in (b1, b2))
        scale = jnp.sqrt(second) / first
        updates = jax.tree.map(lambda m, v: scale.astype(m.dtype) * m / (jnp.sqrt(v) + config.epsilon), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(plain.init, update)


def _add_decay(decays: PyTree) -> optax.GradientTransformation:
    if not any(jax.tree.leaves(decays)):
        return optax.identity()
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, decay: u + decay * p if decay else u, updates, params, decays)
    )


def _scale_by(factors: PyTree) -> optax.GradientTransformation:
    if all(factor == 1 for factor in jax.tree.leaves(factors)):
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors))

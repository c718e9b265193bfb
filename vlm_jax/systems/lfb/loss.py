"""Loss and training reports of the action classifier (open-mmlab/mmaction2, mmaction/models/roi_heads/bbox_heads)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

THRESHOLD = 0.5
"""Probability above which an action counts as predicted in the reports."""


def action_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    groups: int = 1,
    multilabel: bool = True,
    background_class: bool = True,
    focal_alpha: float = 1.0,
    focal_gamma: float = 0.0,
    top_k: Sequence[int] = (3, 5),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss and reports of boxes with at least one label; rows without any, such as padding, do not count.

    The loss is the mean over the rows of a group, and over groups, as where every process averages its own rows. A
    group without rows counts as 0.

    Args:
      logits: Scores, `[B, N, A]`.
      labels: Labels, bool or float `[B, N, A]`, all 0 for padding.
      groups: Number of groups of consecutive clips.
      multilabel: If true, actions are independent (sigmoid); else the labels of a row share one softmax.
      background_class: If true, column 0 takes no part.
      focal_alpha: Factor of the focal loss; 1 for none.
      focal_gamma: Exponent of the focal loss; 0 for none.
      top_k: Numbers of best actions in the reports.

    Returns:
      The loss, and `recall@thr=0.5`, `prec@thr=0.5`, `recall@top3`, ... as means over rows.
    """
    first = int(background_class)
    logits = logits.reshape(groups, -1, logits.shape[-1])[..., first:]
    targets = labels.reshape(groups, -1, labels.shape[-1])[..., first:].astype(logits.dtype)
    kept = targets.sum(-1) > 0
    if multilabel:
        loss = jax.nn.softplus(logits) - targets * logits
    else:
        shares = targets / jnp.maximum(targets.sum(-1, keepdims=True), 1) if background_class else targets
        loss = -(shares * jax.nn.log_softmax(logits)).sum(-1, keepdims=True)
    if focal_gamma:
        loss = (1 - jnp.exp(-loss)) ** focal_gamma * loss
    loss = _mean_over_rows(focal_alpha * loss.mean(-1), kept)
    reports = {}
    for name, chosen in _predictions(jax.lax.stop_gradient(logits), multilabel, top_k).items():
        hits = (chosen & (targets > 0)).sum(-1)
        reports[f"recall@{name}"] = _mean_over_rows(hits / jnp.maximum(targets.sum(-1), 1e-6), kept)
        reports[f"prec@{name}"] = _mean_over_rows(hits / (chosen.sum(-1) + 1e-6), kept)
    return loss, reports


def scores(logits: jax.Array, *, multilabel: bool = True) -> jax.Array:
    """Return the probabilities of actions, `[..., A]`; a softmax includes column 0."""
    return jax.nn.sigmoid(logits) if multilabel else jax.nn.softmax(logits)


def _predictions(logits: jax.Array, multilabel: bool, top_k: Sequence[int]) -> dict[str, jax.Array]:
    """Return the predicted actions of every row by the report's name, bool `[..., A]`."""

    def best(count: int) -> jax.Array:
        places = jax.lax.top_k(logits, count)[1]
        return (places[..., None] == jnp.arange(logits.shape[-1])).any(-2)

    above = jax.nn.sigmoid(logits) > THRESHOLD if multilabel else best(1)
    return {f"thr={THRESHOLD}": above} | {f"top{count}": best(min(count, logits.shape[-1])) for count in top_k}


def _mean_over_rows(values: jax.Array, kept: jax.Array) -> jax.Array:
    """Return the mean over groups of the mean over the kept rows of `[G, N]`."""
    return (jnp.where(kept, values, 0).sum(1) / jnp.maximum(kept.sum(1), 1)).mean()

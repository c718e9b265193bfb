"""Losses of dense moment prediction: a class for every point of a pyramid, and its distances to start and end.

Rules of houzhijian/GroundNLQ, `libs/modeling/losses.py` and `meta_archs.py`. All are at least float32, and float64
where their inputs are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

MOMENTUM = 0.9
"""Of the running count of positives."""

EPSILON = 1e-8


def smooth_labels(targets: jax.Array, amount: float) -> jax.Array:
    """Moves targets `[..., N]` of 0 and 1 towards 1 / (N + 1): nothing at all counts as a class too."""
    return targets * (1 - amount) + amount / (targets.shape[-1] + 1)


def sigmoid_focal(logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy that fades where the answer is right (Lin et al. 2017), for targets between 0 and 1.

    Args:
      logits: `[...]`.
      targets: `[...]`.
      alpha: Weight of a positive, 1 - alpha being a negative's; below 0 all weigh 1.
      gamma: How fast it fades.

    Returns:
      `[...]`, not reduced.
    """
    logits, targets = _wide(logits, targets)
    probability = jax.nn.sigmoid(logits)
    entropy = jax.nn.softplus(logits) - logits * targets
    right = probability * targets + (1 - probability) * (1 - targets)
    loss = entropy * (1 - right) ** gamma
    return loss if alpha < 0 else (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def centre_iou(offsets: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - IoU of two segments around the same point, each given by its distances to start and end.

    Args:
      offsets: `[..., 2]`, not negative.
      targets: `[..., 2]`.

    Returns:
      `[...]`, not reduced; 1 where both have no length.
    """
    offsets, targets = _wide(offsets, targets)
    shared = jnp.minimum(offsets, targets).sum(-1)
    union = offsets.sum(-1) + targets.sum(-1) - shared
    return 1 - shared / jnp.maximum(union, EPSILON)


def distance_iou(offsets: jax.Array, targets: jax.Array) -> jax.Array:
    """`centre_iou` plus the squared distance of the middles, relative to the hull of both (Zheng et al. 2020)."""
    offsets, targets = _wide(offsets, targets)
    hull = jnp.maximum(offsets, targets).sum(-1)
    distance = ((offsets[..., 1] - offsets[..., 0]) - (targets[..., 1] - targets[..., 0])) / 2
    return centre_iou(offsets, targets) + jnp.square(distance / jnp.maximum(hull, EPSILON))


def grounding_loss(
    logits: Sequence[jax.Array],
    offsets: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    class_targets: jax.Array,
    offset_targets: jax.Array,
    normaliser: jax.Array,
    *,
    label_smoothing: float = 0.1,
    loss_weight: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Class loss of all points that exist plus offset loss of the positives, over a running count of positives.

    Each of G groups of consecutive examples has a count of its own, as each process of the reference had; it is
    updated before it is used. The loss is the mean over groups, as the reference averages gradients over processes.

    Args:
      logits: A list over the levels of `[B, T_l, N]`.
      offsets: A list of `[B, T_l, 2]`.
      masks: A list of `[B, T_l]`.
      class_targets: `[B, P, N]` of 0 and 1, level after level.
      offset_targets: `[B, P, 2]`; anything at negatives.
      normaliser: `[G]`, the running counts.
      label_smoothing: See `smooth_labels`.
      loss_weight: Of the offset loss; at or below 0 it is the ratio of the class loss to the offset loss, taken as a
        constant.

    Returns:
      The loss, its parts by name, and the counts after the update.

    Raises:
      ValueError: where G does not divide B, or targets are of another number of points than the levels.
    """
    logits, offsets, masks = (jnp.concatenate(tuple(levels), 1) for levels in (logits, offsets, masks))
    if class_targets.shape != logits.shape:
        raise ValueError(f"grounding loss: class targets are {class_targets.shape}, expected {logits.shape}")
    groups, examples = len(normaliser), len(logits)
    if examples % groups:
        raise ValueError(f"grounding loss: {groups} groups do not divide {examples} examples")
    logits, offsets, class_targets, offset_targets = _wide(logits, offsets, class_targets, offset_targets)
    positive = masks & (class_targets.sum(-1) > 0)

    def per_group(points: jax.Array) -> jax.Array:
        return points.reshape(groups, -1).sum(1)

    count = per_group(positive.astype(logits.dtype))
    after = MOMENTUM * normaliser + (1 - MOMENTUM) * jnp.maximum(count, 1)
    focal = sigmoid_focal(logits, smooth_labels(class_targets, label_smoothing)).sum(-1)
    class_loss = per_group(jnp.where(masks, focal, 0)) / after
    offset_loss = per_group(jnp.where(positive, distance_iou(offsets, offset_targets), 0)) / after
    weight = loss_weight
    if loss_weight <= 0:
        weight = jax.lax.stop_gradient(class_loss / jnp.maximum(offset_loss, 0.01))
    loss = (class_loss + weight * offset_loss).mean()
    metrics = {
        "class_loss": class_loss.mean(),
        "offset_loss": offset_loss.mean(),
        "positives": count.mean(),
        "normaliser": after.mean(),
    }
    return loss, metrics, after.astype(normaliser.dtype)


def _wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Casts to one type, at least float32."""
    wide = jnp.result_type(jnp.float32, *arrays)
    return tuple(array.astype(wide) for array in arrays)

"""Losses of GroundNLQ: classification of the points of a pyramid, and regression of their distances to start and end.

Reference: houzhijian/GroundNLQ, `libs/modeling/losses.py` and `meta_archs.py`. All losses are at least float32, and
float64 if an input is.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

MOMENTUM = 0.9
"""Momentum of the running count of positives."""

EPSILON = 1e-8


def smooth_labels(targets: jax.Array, amount: float) -> jax.Array:
    """Move targets `[..., N]` of 0 and 1 towards 1 / (N + 1), since 'no class' counts as a class, too."""
    return targets * (1 - amount) + amount / (targets.shape[-1] + 1)


def sigmoid_focal(logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Return the sigmoid focal loss (Lin et al. 2017) for targets between 0 and 1.

    Args:
      logits: Logits, `[...]`.
      targets: Targets, `[...]`.
      alpha: Weight of positives; negatives weigh 1 - alpha. Below 0, all weigh 1.
      gamma: Exponent of the focusing factor.

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
    """Return 1 - IoU of two segments around the same point.

    Args:
      offsets: Predicted distances to start and end, `[..., 2]`, not negative.
      targets: Target distances to start and end, `[..., 2]`.

    Returns:
      `[...]`, not reduced; 1 where both segments have length 0.
    """
    offsets, targets = _wide(offsets, targets)
    shared = jnp.minimum(offsets, targets).sum(-1)
    union = offsets.sum(-1) + targets.sum(-1) - shared
    return 1 - shared / jnp.maximum(union, EPSILON)


def distance_iou(offsets: jax.Array, targets: jax.Array) -> jax.Array:
    """Return `centre_iou` plus the squared distance of the middles over the squared hull (DIoU, Zheng et al. 2020)."""
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
    """Return the class loss of all points plus the offset loss of positives, divided by a running count of positives.

    Each of G groups of consecutive examples has its own count, as each process of the reference had; it is updated
    before use. The loss is the mean over groups, as the reference averages gradients over processes.

    Args:
      logits: Class logits of each level, `[B, T_l, N]`.
      offsets: Distances to start and end in strides of the level, `[B, T_l, 2]`.
      masks: Points that exist, bool `[B, T_l]`.
      class_targets: Targets 0 and 1 of P points, level after level, `[B, P, N]`.
      offset_targets: Target distances, `[B, P, 2]`; values at negatives are not used.
      normaliser: Running counts, `[G]`.
      label_smoothing: Amount of label smoothing, see `smooth_labels`.
      loss_weight: Weight of the offset loss. If 0 or less, it is the ratio of class loss to offset loss, without a
        gradient.

    Returns:
      The loss, its parts by name, and the updated counts `[G]`.

    Raises:
      ValueError: If G does not divide B, or class targets and logits differ in shape.
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
    """Cast arrays to their common type, at least float32."""
    wide = jnp.result_type(jnp.float32, *arrays)
    return tuple(array.astype(wide) for array in arrays)

"""Loss of CTRL over the global batch: alignment of sentences and windows, and regression of boundaries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class AlignmentLoss(NamedTuple):
    """Loss and its parts, scalars.

    Attributes:
      total: Alignment plus weighted regression.
      alignment: Mean weighted logistic loss of all pairs.
      regression: Mean absolute error of the offsets, in their unit.
    """

    total: jax.Array
    alignment: jax.Array
    regression: jax.Array


def alignment_regression(
    outputs: jax.Array,
    offsets: jax.Array,
    *,
    positive_weight: float = 1.0,
    alpha: float | None = None,
    regression_weight: float = 0.01,
) -> AlignmentLoss:
    """Return the loss of CTRL (Gao et al. 2017, section 3.4; PaddlePaddle/models release/1.8, tall_net.py).

    Pair (i, i) is right and every other pair wrong, whatever the moments' real overlap. The weight w of a pair is
    `alpha`, plus `positive_weight` on the diagonal. The alignment is the mean over B x B values of
    w log(1 + exp(-score)) for right pairs and w log(1 + exp(score)) for wrong ones. It is normalised by 1/B^2 as in the
    code; the paper's formula has 1/B. The regression is the mean absolute error over B x 2 values.

    Args:
      outputs: Score, start offset and end offset of every pair, `[B, B, 3]`; sentences first, then windows.
      offsets: Target offsets of the pairs (i, i), `[B, 2]`.
      positive_weight: Weight of a right pair in addition to `alpha`.
      alpha: Weight of every pair; None for 1 / B.
      regression_weight: Weight of the regression (lambda).
    """
    outputs = jnp.asarray(outputs)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    batch = len(outputs)
    right = jnp.eye(batch, dtype=outputs.dtype)
    weight = positive_weight * right + (1 / batch if alpha is None else alpha)
    alignment = (weight * jax.nn.softplus((1 - 2 * right) * outputs[..., 0])).mean()
    error = jnp.diagonal(outputs[..., 1:]).T - offsets
    # Not jnp.abs, whose gradient at 0 is 1; that of the references is 0.
    regression = (error * jax.lax.stop_gradient(jnp.sign(error))).mean()
    return AlignmentLoss(alignment + regression_weight * regression, alignment, regression)

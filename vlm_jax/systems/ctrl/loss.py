"""Alignment of sentences and windows with regression of boundaries, over the global batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class AlignmentLoss(NamedTuple):
    """A loss and its parts, scalars.

    Attributes:
      total: Alignment plus the weighted regression.
      alignment: Mean logistic loss of all pairs.
      regression: Mean distance of the offsets, in their unit.
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
    """CTRL's loss (Gao et al. 2017, section 3.4; PaddlePaddle/models release/1.8, tall_net.py).

    Pair (i, i) is right, every other one wrong, whatever the moments' real overlap. With the weight w of a pair,
    `alpha` and on the diagonal `positive_weight` more, the alignment is the mean over B x B of w log(1 + exp(-+score)):
    the code's 1/B^2, a B-th of the paper's formula. The regression is the plain distance, a mean over B x 2 values.

    Args:
      outputs: `[B, B, 3]`, sentence, window, (score, start offset, end offset).
      offsets: `[B, 2]`, what those of the pairs (i, i) should be.
      positive_weight: Of a right pair beside `alpha`.
      alpha: Of every pair; None for 1 / B.
      regression_weight: Lambda.
    """
    outputs = jnp.asarray(outputs)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    batch = len(outputs)
    right = jnp.eye(batch, dtype=outputs.dtype)
    weight = positive_weight * right + (1 / batch if alpha is None else alpha)
    alignment = (weight * jax.nn.softplus((1 - 2 * right) * outputs[..., 0])).mean()
    error = jnp.diagonal(outputs[..., 1:]).T - offsets
    # Not jnp.abs, whose gradient at 0 is 1 and not the references' 0.
    regression = (error * jax.lax.stop_gradient(jnp.sign(error))).mean()
    return AlignmentLoss(alignment + regression_weight * regression, alignment, regression)

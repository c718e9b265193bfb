"""Attentive masking: words that the text encoder attends to are masked, drawn inside of the training step.

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vlm_jax.text.masking import IGNORED


def draw_attended(
    key: jax.Array, importance: jax.Array, ids: jax.Array, special: Sequence[int], probability: float = 0.15
) -> jax.Array:
    """Return which tokens are masked, drawn without replacement in proportion to their importance, bool `[B, L]`.

    With n tokens that are not special, `max(int(probability * n), 1)` tokens are drawn, the product in float32. Special
    tokens have almost no weight; they are drawn only if there is nothing else.

    Args:
      key: Random key.
      importance: Attention that each token received, not negative, `[B, L]`.
      ids: Unmasked ids, `[B, L]`.
      special: Ids of padding, CLS and SEP.
      probability: Share of the tokens to mask.
    """
    ordinary = ~jnp.isin(ids, jnp.array(special))
    number = jnp.maximum((jnp.float32(probability) * ordinary.sum(-1).astype(jnp.float32)).astype(int), 1)
    weights = jnp.where(ordinary, importance, 0) + 1e-6
    # The largest of log(weight) + Gumbel noise are a sample without replacement.
    noisy = jnp.log(weights) + jax.random.gumbel(key, ids.shape, weights.dtype)
    rank = jnp.argsort(jnp.argsort(-noisy, -1), -1)
    return rank < number[:, None]


def mask_drawn(ids: jax.Array, drawn: jax.Array, mask_id: int) -> tuple[jax.Array, jax.Array]:
    """Return ids in which all drawn tokens are masked, and their labels, `[B, L]` each."""
    return jnp.where(drawn, mask_id, ids), jnp.where(drawn, ids, IGNORED)


def sometimes_attended(
    key: jax.Array,
    importance: jax.Array,
    unmasked: jax.Array,
    ids: jax.Array,
    labels: jax.Array,
    special: Sequence[int],
    mask_id: int,
    groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Return ids and labels, `[B, L]` each, in which half of the groups have attentive masks instead of the given ones.

    Args:
      key: Random key.
      importance: Attention that each token received, `[B, L]`; no gradient flows through it.
      unmasked: Ids without masks, `[B, L]`.
      ids: Ids with the masks of the data, `[B, L]`.
      labels: Their labels, `[B, L]`.
      special: Ids of padding, CLS and SEP.
      mask_id: Id of the mask token.
      groups: Number of groups of consecutive captions; each is decided by one draw.
    """
    decide, draw = jax.random.split(key)
    attended = jnp.repeat(jax.random.bernoulli(decide, shape=(groups,)), len(ids) // groups)[:, None]
    drawn = draw_attended(draw, jax.lax.stop_gradient(importance), unmasked, special)
    found_ids, found_labels = mask_drawn(unmasked, drawn, mask_id)
    return jnp.where(attended, found_ids, ids), jnp.where(attended, found_labels, labels)

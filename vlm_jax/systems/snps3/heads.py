"""Heads of SNP-S3 on the outputs of the shared BERT: masked words, matching of a text and a video.

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import LayerNorm, Linear, compute_in


class MaskedWordHead(nn.Module):
    """BERT's head for masked words, whose last layer is the word table (Devlin et al. 2019).

    Attributes:
      dtype: Compute type.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Return logits `[..., V]` of hidden states `[..., D]`.

        Args:
          hidden: Outputs of the encoder.
          table: Word embeddings, `[V, D]`.
        """
        hidden = nn.gelu(Linear(hidden.shape[-1], self.dtype, name="dense")(hidden), approximate=False)
        hidden = LayerNorm(1e-6, name="norm")(hidden)
        bias = self.param("bias", nn.initializers.zeros, (len(table),))
        hidden, table, bias = compute_in(self.dtype, hidden, table, bias)
        return hidden @ table.T + bias


class MatchingHead(nn.Module):
    """Score of a text and a video from the pooled output of the cross encoder.

    Attributes:
      dropout: Rate on the pooled output.
      dtype: Compute type.
    """

    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array, train: bool = False) -> jax.Array:
        """Return scores `[...]` of pooled outputs `[..., D]`."""
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        hidden = nn.relu(Linear(2 * pooled.shape[-1], self.dtype, name="hidden")(pooled))
        return Linear(1, self.dtype, name="score")(hidden)[..., 0]

"""BERT, used twice: as encoder of text, and of text together with visual tokens.

Sources: Devlin et al. 2019 (BERT); Wang et al. 2023 (SNP-S3, section III), whose one encoder serves both uses;
alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp. Norms come after the residuals.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import LayerNorm, compute_in, dense
from vlm_jax.ops.attention import full_attention_and_weights, merge_heads, split_heads
from vlm_jax.ops.normalisation import l2_normalise

EPSILON = 1e-12
INITIAL = nn.initializers.normal(0.02)
TEXT, VISUAL = 0, 1
"""Types of tokens."""


class Text(NamedTuple):
    """Outputs for a text.

    Attributes:
      sequence: Output of every word, `[B, L, D]`.
      pooled: Output of the pooler, `[B, D]`.
      embedding: `pooled` with length 1, at least float32, `[B, D]`.
      importance: Attention that every word gets, summed over layers and queries and averaged over heads, without
        gradient, at least float32, `[B, L]`.
    """

    sequence: jax.Array
    pooled: jax.Array
    embedding: jax.Array
    importance: jax.Array


class Cross(NamedTuple):
    """Outputs for a text together with visual tokens.

    Attributes:
      text: Output of every word, `[B, L, D]`.
      visual: Output of every visual token, `[B, N, D]`.
      pooled: Output of the cross pooler, `[B, D]`.
    """

    text: jax.Array
    visual: jax.Array
    pooled: jax.Array


class Layer(nn.Module):
    """Layer of the encoder: self-attention and two linear layers, each with dropout, a residual and a norm.

    Attributes:
      heads: Number of heads.
      hidden: Number of channels between the two linear layers.
      dropout: Dropout rate, of attention weights too.
      dtype: Compute type.
    """

    heads: int
    hidden: int
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool, outputs: int | None) -> tuple[jax.Array, jax.Array]:
        """Apply the layer to `[B, T, D]`, of which `mask` `[B, T]` exists; also return the attention weights.

        Only the first `outputs` positions are computed, or all for None.
        """
        linear = functools.partial(dense, dtype=self.dtype, kernel_init=INITIAL)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        wanted = x[:, :outputs]
        inputs = {"query": wanted, "key": x, "value": x}
        parts = [split_heads(linear(x.shape[-1], name=name)(given), self.heads) for name, given in inputs.items()]
        attended, weights = full_attention_and_weights(*parts, mask, dropout=drop)
        attended = linear(x.shape[-1], name="attention_output")(merge_heads(attended))
        x = LayerNorm(EPSILON, name="attention_norm")(wanted + drop(attended))
        hidden = nn.gelu(linear(self.hidden, name="intermediate")(x), approximate=False)
        out = linear(x.shape[-1], name="output")(hidden)
        return LayerNorm(EPSILON, name="output_norm")(x + drop(out)), weights


class Pooler(nn.Module):
    """Linear layer and tanh of the first position."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool `[B, T, D]`: `[B, D]`."""
        return jnp.tanh(dense(x.shape[-1], self.dtype, "dense", INITIAL)(x[:, 0]))


class Bert(nn.Module):
    """BERT; the defaults are the sizes of BERT-base.

    Attributes:
      vocabulary_size: Number of words.
      pad_id: Id of padding, whose embedding gets no gradient from being looked up.
      separator_id: Id of the word that ends the visual tokens.
      features: Number of channels, D.
      num_layers: Number of layers.
      heads: Number of heads.
      hidden: Number of channels inside a layer.
      positions: Largest number of positions.
      dropout: Dropout rate of embeddings, attention weights and residuals.
      remat: If true, layers are computed again in the backward pass, which saves memory.
      dtype: Compute type; parameters, softmax and norms are at least float32.
    """

    vocabulary_size: int
    pad_id: int
    separator_id: int
    features: int = 768
    num_layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    dropout: float = 0.1
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Make the parameters that both uses share, and a pooler for each of them."""
        self.word_embeddings = self.param("word_embeddings", INITIAL, (self.vocabulary_size, self.features))
        self.position_embeddings = self.param("position_embeddings", INITIAL, (self.positions, self.features))
        self.type_embeddings = self.param("type_embeddings", INITIAL, (2, self.features))
        self.embeddings_norm = LayerNorm(EPSILON)
        self.embeddings_dropout = nn.Dropout(self.dropout)
        kind = nn.remat(Layer, static_argnums=(3, 4)) if self.remat else Layer
        self.layer = [kind(self.heads, self.hidden, self.dropout, self.dtype) for _ in range(self.num_layers)]
        self.pooler = Pooler(self.dtype)
        self.cross_pooler = Pooler(self.dtype)

    def text(self, ids: jax.Array, mask: jax.Array, train: bool = False) -> Text:
        """Encode a text.

        Args:
          ids: Ids of the words, `[B, L]`.
          mask: Words that exist, bool `[B, L]`.
          train: If true, dropout is active.
        """
        sequence, importance = self.encode(self.embed_text(ids, train), mask, train)
        pooled = self.pooler(sequence)
        return Text(sequence, pooled, l2_normalise(pooled), importance)

    def cross(self, ids: jax.Array, mask: jax.Array, visual: jax.Array, train: bool = False) -> Cross:
        """Encode a text together with visual tokens, all of which exist.

        Args:
          ids: Ids of the words, `[B, L]`.
          mask: Words that exist, bool `[B, L]`.
          visual: Visual tokens, `[B, N, D]`.
          train: If true, dropout is active.
        """
        sequence, _ = self.encode(*self._embed_both(ids, mask, visual, train), train)
        length, count = ids.shape[1], visual.shape[1]
        return Cross(sequence[:, :length], sequence[:, length : length + count], self.cross_pooler(sequence))

    def pool_cross(self, ids: jax.Array, mask: jax.Array, visual: jax.Array, train: bool = False) -> jax.Array:
        """Return what `cross` returns as `pooled`, `[B, D]`; the last layer computes nothing else."""
        x, mask = self._embed_both(ids, mask, visual, train)
        for layer in self.layer[:-1]:
            x, _ = layer(x, mask, train, None)
        return self.cross_pooler(self.layer[-1](x, mask, train, 1)[0])

    def embed_text(self, ids: jax.Array, train: bool = False) -> jax.Array:
        """Return what the encoder reads for ids `[B, L]`: `[B, L, D]`."""
        words = self.word_embeddings[ids]
        words = jnp.where((ids == self.pad_id)[..., None], jax.lax.stop_gradient(words), words)
        return self._embed(words, TEXT, train)

    def embed_visual(self, visual: jax.Array, train: bool = False) -> jax.Array:
        """Return what the encoder reads for visual tokens `[B, N, D]` and the separator: `[B, N + 1, D]`."""
        batch, _, width = visual.shape
        separator = jnp.broadcast_to(self.word_embeddings[self.separator_id], (batch, 1, width))
        return self._embed(jnp.concatenate([visual, separator], 1), VISUAL, train)

    def encode(self, x: jax.Array, mask: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Apply all layers to `[B, T, D]`, of which `mask` `[B, T]` exists; also return the importance `[B, T]`."""
        importance = 0
        for layer in self.layer:
            x, weights = layer(x, mask, train, None)
            wide = jnp.promote_types(weights.dtype, jnp.float32)
            importance += jax.lax.stop_gradient(weights).mean(1, dtype=wide).sum(1)
        return x, importance

    def _embed_both(
        self, ids: jax.Array, mask: jax.Array, visual: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Return text, visual tokens and separator as the encoder reads them, and which of them exist."""
        embedded = jnp.concatenate([self.embed_text(ids, train), self.embed_visual(visual, train)], 1)
        return embedded, jnp.pad(mask.astype(bool), ((0, 0), (0, visual.shape[1] + 1)), constant_values=True)

    def _embed(self, x: jax.Array, kind: int, train: bool) -> jax.Array:
        x = x + self.position_embeddings[: x.shape[1]] + self.type_embeddings[kind]
        x = self.embeddings_dropout(self.embeddings_norm(x), deterministic=not train)
        return compute_in(self.dtype, x)[0]

"""Feature bank operators: how a box looks at the features of other seconds.

Sources: Wu et al. 2019 (Long-Term Feature Banks, sections 3.3 and 4.1); open-mmlab/mmaction2,
mmaction/models/roi_heads/shared_heads/fbo_head.py. Submodules carry the names of the released checkpoints.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import LayerNorm, compute_in, kaiming_normal_fan_out

OPERATORS = ("none", "non_local", "avg", "max")
"""Operators by `config.model.operator`; with 'none', the model has no bank."""


def gather_slots(rows: jax.Array, slots: jax.Array, empty: jax.Array | float = 0.0) -> jax.Array:
    """Return the bank row in every slot of every box.

    Args:
      rows: Rows of each clip's window, `[B, S, C]`.
      slots: Row in each slot, int32 `[B, N, L]`; -1 for an empty slot.
      empty: Content of an empty slot, a number or `[C]`.

    Returns:
      `[B, N, L, C]`.
    """
    found = jax.vmap(lambda own, at: own.at[at].get(mode="clip"))(rows, slots)
    return jnp.where((slots >= 0)[..., None], found, jnp.asarray(empty, rows.dtype))


def pool_bank(rows: jax.Array, slots: jax.Array, operator: str) -> jax.Array:
    """Return the mean ('avg') or maximum ('max') over all slots, empty ones included as zeros: `[B, N, C]`."""
    wide = gather_slots(rows, slots).astype(jnp.promote_types(rows.dtype, jnp.float32))
    return wide.mean(2) if operator == "avg" else wide.max(2)


class Weights(nn.Module):
    """Weights of a linear layer, which start as those of a convolution of one pixel: normal by fan-out, with bias 0.

    Attributes:
      features: Number of outputs.
      zero_init: If true, the kernel starts at 0.
    """

    features: int
    zero_init: bool = False

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Return kernel `[channels, features]` and bias `[features]`."""
        init = nn.initializers.zeros if self.zero_init else kaiming_normal_fan_out
        kernel = self.param("kernel", init, (channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def project(x: jax.Array, weights: tuple[jax.Array, jax.Array], dtype: jnp.dtype) -> jax.Array:
    """Apply a kernel `[C, D]` and a bias `[D]` to `[..., C]`, computed in `dtype` (see `compute_in`): `[..., D]`."""
    x, kernel, bias = compute_in(dtype, x, *weights)
    return x @ kernel + bias


def attend(
    query: jax.Array,
    slots: jax.Array,
    key: tuple[jax.Array, jax.Array],
    value: tuple[jax.Array, jax.Array],
    use_scale: bool,
) -> jax.Array:
    """Return attention over slots, without projecting every slot to a key and a value.

    Keys and values are linear maps of the slots. The score of a query is therefore the product of its own map with the
    slot, and the weighted mean of the values is the map of the weighted mean of the slots: two products per box instead
    of two per slot. The bias of the keys shifts all scores of a query alike, which the softmax ignores.

    Args:
      query: Queries, `[B, N, D]`.
      slots: Slots of every box, `[B, N, L, D]`.
      key: Kernel and bias of the keys.
      value: Kernel and bias of the values.
      use_scale: If true, scores are divided by sqrt(D).

    Returns:
      `[B, N, D]` in the type of `query`.
    """
    dtype, wide = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bnc,bnlc->bnl", query @ key[0].astype(dtype).T, slots).astype(wide)
    if use_scale:
        scores = scores / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(scores, -1).astype(dtype)
    return project(jnp.einsum("bnl,bnlc->bnc", weights, slots), value, dtype)


class NonLocalLayer(nn.Module):
    """Attention of boxes over the slots of their windows, with a residual connection.

    Attributes:
      features: Number of channels, D.
      pre_activate: If true, norm and ReLU come before the last projection; else the norm comes after it, and ReLU after
        the sum.
      with_norm: If false, the first form has no norm.
      use_scale: If true, scores are divided by sqrt(D).
      zero_init_out: If true, the last projection starts at 0.
      dropout: Dropout rate of the layer's output.
      dtype: Compute type.
    """

    features: int
    pre_activate: bool = True
    with_norm: bool = True
    use_scale: bool = True
    zero_init_out: bool = False
    dropout: float = 0.2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, short: jax.Array, slots: jax.Array, train: bool) -> jax.Array:
        """Update `short` `[B, N, D]` from `slots` `[B, N, L, D]`: `[B, N, D]`."""
        names = ("st_feat_conv", "lt_feat_conv", "global_conv")
        theta, phi, g = (Weights(self.features, name=name)(slots.shape[-1]) for name in names)
        out = attend(project(short, theta, self.dtype), slots, phi, g, self.use_scale)
        weights = Weights(self.features, self.zero_init_out, name="out_conv")(self.features)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if self.pre_activate:
            if self.with_norm:
                out = LayerNorm(name="ln")(out)
            return short + drop(project(nn.relu(out), weights, self.dtype))
        return nn.relu(short + drop(LayerNorm(name="ln")(project(out, weights, self.dtype))))


class NonLocalBank(nn.Module):
    """Non-local operator: boxes attend to the features of the seconds around them, empty slots included.

    The rows of a clip's window are projected once, however many boxes and slots hold them. An empty slot is the
    projection of zeros, its bias, and takes attention as in the reference.

    Attributes:
      features: Number of latent channels, D.
      layers: Number of non-local layers.
      pre_activate: Order of norm and projection, see `NonLocalLayer`.
      with_norm: See `NonLocalLayer`.
      use_scale: If true, scores are divided by sqrt(D).
      zero_init_out: If true, the last projection of each layer starts at 0.
      dropout: Dropout rate of both inputs' projections and of each layer's output.
      dtype: Compute type.
    """

    features: int = 512
    layers: int = 2
    pre_activate: bool = True
    with_norm: bool = True
    use_scale: bool = True
    zero_init_out: bool = False
    dropout: float = 0.2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, short: jax.Array, rows: jax.Array, slots: jax.Array, train: bool) -> jax.Array:
        """Combine the boxes' features with their windows.

        Args:
          short: Features of the boxes, `[B, N, C]`.
          rows: Bank rows of each clip's window, `[B, S, C']`.
          slots: Row in each slot of each box, int32 `[B, N, L]`; -1 for an empty slot.
          train: If true, dropout acts on every box and slot independently.

        Returns:
          `[B, N, D]`.
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)
        short = drop(project(short, Weights(self.features, name="st_feat_conv")(short.shape[-1]), self.dtype))
        rows = jnp.concatenate([jnp.zeros_like(rows[:, :1]), rows], 1)
        rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
        projected = project(rows, Weights(self.features, name="lt_feat_conv")(rows.shape[-1]), self.dtype)
        window = drop(jax.vmap(lambda own, at: own.at[at].get(mode="promise_in_bounds"))(projected, slots + 1))
        for number in range(self.layers):
            short = NonLocalLayer(
                self.features,
                self.pre_activate,
                self.with_norm,
                self.use_scale,
                self.zero_init_out,
                self.dropout,
                self.dtype,
                name=f"non_local_layer_{number + 1}",
            )(short, window, train)
        return short

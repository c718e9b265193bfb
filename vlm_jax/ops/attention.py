"""Full attention, and window attention that is computed in blocks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

FAR = -1e9
"""Score of keys that do not exist. It is finite, so that rows without keys give no NaN, in values or gradients."""

BLOCK = 32
"""Number of queries that share one stretch of keys."""


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Split the channels into heads: `[..., C]` -> `[..., H, C / H]`."""
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x: jax.Array) -> jax.Array:
    """Join the channels of all heads: `[..., H, D]` -> `[..., H * D]`."""
    return x.reshape(*x.shape[:-2], -1)


def full_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Return scaled dot-product attention in which every query sees every key that exists.

    Args:
      query: Queries, `[..., T, H, D]` with H heads.
      key: Keys, `[..., S, H, D]`.
      value: Values, `[..., S, H, D]`.
      key_mask: Keys that exist, bool `[..., S]`; None if all do.
      bias: Bias added to the scores, broadcast to `[..., H, T, S]`; None for none.

    Returns:
      `[..., T, H, D]`.
    """
    return full_attention_and_weights(query, key, value, key_mask, bias)[0]


def full_attention_and_weights(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the attention of `full_attention` and its weights, `[..., T, H, D]` and `[..., H, T, S]`.

    Args:
      query: Queries, `[..., T, H, D]`.
      key: Keys, `[..., S, H, D]`.
      value: Values, `[..., S, H, D]`.
      key_mask: Keys that exist, bool `[..., S]`; None if all do.
      bias: Bias added to the scores, broadcast to `[..., H, T, S]`; None for none.
      dropout: Function that drops some of the weights; the weights returned are those after it. None for none.
    """
    scores = jnp.einsum("...thd,...shd->...hts", query / math.sqrt(query.shape[-1]), key)
    dtype = scores.dtype
    if bias is not None:
        scores = scores.astype(jnp.promote_types(dtype, jnp.float32)) + bias
    seen = True if key_mask is None else key_mask[..., None, None, :]
    weights = _softmax(scores, seen, dtype)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum("...hts,...shd->...thd", weights, value), weights


def window_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    window: int,
    relative_bias: jax.Array | None = None,
) -> jax.Array:
    """Return attention in which position i sees positions i - window // 2 to i + window // 2.

    Time and memory grow linearly with T: queries are processed in blocks of `BLOCK`, each with the stretch of keys that
    any of its queries sees. Queries that do not exist get 0.

    Args:
      query: Queries, `[B, T, H, D]` with H heads.
      key: Keys, `[B, T, H, D]`.
      value: Values, `[B, T, H, D]`.
      mask: Positions that exist, bool `[B, T]`.
      window: Number of positions that a query sees, odd.
      relative_bias: Bias added to the scores, `[H, window]`; the first entry belongs to the leftmost key.

    Returns:
      `[B, T, H, D]`.
    """
    length, half = query.shape[1], window // 2
    block = min(BLOCK, length)
    blocks = -(-length // block)
    behind = blocks * block - length
    query = _blocks(query / math.sqrt(query.shape[-1]), block, 0, behind)
    key, value, there = (_blocks(x, block, half, behind + half) for x in (key, value, mask))

    # Key j of a stretch lies j - half positions after the block's first query.
    offset = jnp.arange(block + 2 * half) - half - jnp.arange(block)[:, None]
    seen = (abs(offset) <= half) & there[:, :, None, None, :]
    scores = jnp.einsum("bnqhd,bnkhd->bnhqk", query, key)
    if relative_bias is not None:
        scores += relative_bias[:, jnp.clip(offset + half, 0, window - 1)]
    weights = _softmax(scores, seen, scores.dtype)
    out = jnp.einsum("bnhqk,bnkhd->bnqhd", weights, value)
    out = out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]
    return out * mask[:, :, None, None]


def _softmax(scores: jax.Array, seen: jax.Array | bool, dtype: jnp.dtype) -> jax.Array:
    """Return the softmax over the last axis of the scores that are seen, computed in at least float32."""
    scores = scores.astype(jnp.promote_types(dtype, jnp.float32))
    return jax.nn.softmax(jnp.where(seen, scores, FAR), axis=-1).astype(dtype)


def _blocks(x: jax.Array, block: int, before: int, after: int) -> jax.Array:
    """Cut `[B, T, ...]` into blocks with `before` more positions on both sides: `[B, T / block, size, ...]`."""
    padded = jnp.pad(x, [(0, 0), (before, after), *([(0, 0)] * (x.ndim - 2))])
    count = (padded.shape[1] - 2 * before) // block
    if not before:
        return padded.reshape(x.shape[0], count, block, *x.shape[2:])
    places = jnp.arange(count)[:, None] * block + jnp.arange(block + 2 * before)
    return padded[:, places]

"""Momentum contrast: slowly moving key encoders, queues of keys, and the loss against a queue (He et al. 2020)."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def move_towards(average: Tree, parameters: Tree, momentum: float) -> Tree:
    """Return `momentum * average + (1 - momentum) * parameters` for every array of two equal trees."""
    return jax.tree.map(lambda slow, fast: momentum * slow + (1 - momentum) * fast, average, parameters)


def random_queue(key: jax.Array, size: int, width: int) -> jax.Array:
    """Return a queue of normal rows of length 1, float32 `[size, width]`."""
    rows = jax.random.normal(key, (size, width))
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def enqueue(queue: jax.Array, pointer: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the queue with new keys, and the pointer behind them.

    Where the keys would pass the end, they replace the last n rows, and the pointer returns to 0. Keys with a NaN
    change neither (alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp).

    Args:
      queue: Keys of earlier batches, `[K, D]`.
      pointer: Row that the next key replaces, an integer scalar.
      keys: Keys of the global batch, `[n, D]`; n is at most K.

    Raises:
      ValueError: If there are more keys than rows.
    """
    size, count = len(queue), len(keys)
    if count > size:
        raise ValueError(f"enqueue: expected at most {size} keys, the size of the queue, found {count}")
    end = jnp.minimum(pointer + count, size)
    start = end - count
    valid = ~jnp.isnan(keys).any()
    replaced = jax.lax.dynamic_slice_in_dim(queue, start, count)
    rows = jnp.where(valid, keys.astype(queue.dtype), replaced)
    return jax.lax.dynamic_update_slice_in_dim(queue, rows, start, 0), jnp.where(valid, end % size, pointer)


def queue_nce(queries: jax.Array, positives: jax.Array, queue: jax.Array, temperature: float) -> jax.Array:
    """Return the contrastive loss of queries with one or several positives against the negatives of a queue.

    With all scores divided by the temperature, the loss is the mean over queries of the log-sum-exp of positives and
    negatives together minus that of the positives.

    Args:
      queries: Embeddings of length 1, `[N, D]`.
      positives: Keys of the same thing, `[N, P, D]`.
      queue: Keys of earlier batches, `[K, D]`.
      temperature: Divisor of the scores.

    Returns:
      A scalar, at least float32.
    """
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    queries, positives, queue = queries.astype(wide), positives.astype(wide), queue.astype(wide)
    positive = jnp.einsum("nd,npd->np", queries, positives) / temperature
    negative = queries @ queue.T / temperature
    everything = jax.nn.logsumexp(jnp.concatenate([positive, negative], 1), 1)
    return (everything - jax.nn.logsumexp(positive, 1)).mean()

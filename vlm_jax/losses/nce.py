"""Noise-contrastive losses over the global batch."""

import jax
import jax.numpy as jnp


def mil_nce(video: jax.Array, text: jax.Array) -> jax.Array:
    """Return the MIL-NCE loss of videos that have K candidate sentences each (Miech et al. 2020, equation 1).

    With S[i, j, k] = v_i . t_jk, the loss is the mean over i of D_i - N_i. N_i is the log-sum-exp of S[i, i, :], and
    D_i is that of S[i, :, :] and S[:, i, :] together. The positives occur in both parts of D_i, as in the reference, so
    the loss is at least log 2 (antoine77340/MIL-NCE_HowTo100M, loss.py).

    Args:
      video: Video embeddings of the global batch, `[B, D]`.
      text: Sentence embeddings, `[B*K, D]`; row `i*K + k` is candidate k of video i.

    Returns:
      A scalar, at least float32.
    """
    wide = jnp.promote_types(jnp.result_type(video, text), jnp.float32)
    batch = video.shape[0]
    scores = (video.astype(wide) @ text.astype(wide).T).reshape(batch, batch, -1)
    positives = jax.nn.logsumexp(jnp.diagonal(scores, axis1=0, axis2=1), axis=0)
    rows = scores.reshape(batch, -1)
    columns = scores.transpose(1, 0, 2).reshape(batch, -1)
    everything = jax.nn.logsumexp(jnp.concatenate([rows, columns], -1), -1)
    return (everything - positives).mean()


def grouped_mil_nce(scores: jax.Array, group_size: int = 1, weights: jax.Array | None = None) -> jax.Array:
    """Return the MIL-NCE loss of a score matrix whose rows and columns form groups of positives.

    Only the middle row and the middle column m of each group count. With the log-sum-exp over all rows of column m, and
    over the columns of row m outside of the group, together D, and over the group's rows of column m N, the loss is the
    mean of D - N over groups. With groups of 1 it is a symmetric contrastive loss whose positive occurs once
    (alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp).

    Args:
      scores: Scores of texts (rows) and clips (columns), `[B*n, B*n]`; group b has rows and columns `b*n` to `b*n+n-1`.
      group_size: Number of rows and columns per group, n.
      weights: Factors of the groups' losses, `[B]`; None for 1.

    Returns:
      A scalar, at least float32.
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    groups = jnp.arange(scores.shape[0]) // group_size
    middle = jnp.arange(0, scores.shape[0], group_size) + group_size // 2
    own = groups[:, None] == groups[middle]
    columns = scores[:, middle]
    others = jnp.where(own, -jnp.inf, scores[middle].T)
    positives = jax.nn.logsumexp(jnp.where(own, columns, -jnp.inf), 0)
    everything = jax.nn.logsumexp(jnp.concatenate([columns, others]), 0)
    losses = everything - positives
    return (losses if weights is None else losses * weights).mean()

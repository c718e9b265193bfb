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

"""Metrics of SNP-S3's training batches and of question answering."""

import jax
import jax.numpy as jnp
import numpy as np

RECALLS = (1, 5, 10)


def batch_metrics(scores: jax.Array) -> dict[str, jax.Array]:
    """Return recall at K and the median rank of the diagonal among its row, computed inside of the training step.

    Every position of a sorted row whose score equals the diagonal's is one entry. The median is the lower one of the
    two middle ranks (alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp).

    Args:
      scores: Scores of texts and videos, `[B, B]`.

    Returns:
      `r_1`, `r_5` and `r_10` as fractions, and `mr` from 1.
    """
    match = jnp.diagonal(scores)[:, None]
    first = (scores > match).sum(1)
    last = first + (scores == match).sum(1)
    entries = (last - first).sum()
    below = (
        jnp.clip(jnp.arange(1, len(scores) + 1), first[:, None], last[:, None]) - first[:, None]
    )  # entries of rank < k
    counts = below.sum(0)
    metrics = {f"r_{k}": counts[min(k, len(scores)) - 1] / entries for k in RECALLS}
    return metrics | {"mr": 1.0 + (counts <= (entries - 1) // 2).sum()}


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of questions whose answer has the highest score, rounded to 4 digits.

    Args:
      scores: Scores of all answers, `[N, A]`.
      labels: Index of the right answer, `[N]`; -1 for an answer outside of the vocabulary, which counts as wrong.
    """
    return round(float(np.mean(np.argmax(scores, 1) == labels)), 4)

"""Metrics of SNP-S3's training batches, of retrieval and of question answering."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.metrics.retrieval import ranking_metrics

RECALLS = (1, 5, 10)
NAMES = {"R@1": "r@1", "R@5": "r@5", "R@10": "r@10", "mean_recall": "mean_recall", "median_rank": "mr"}
"""The reference's names of retrieval metrics, by ours."""


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


def matches(texts: Sequence[int], videos: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the matching videos of each text and the matching texts of each video, in order.

    Args:
      texts: Number of the text of each annotated pair, `[N]`; equal captions share one number.
      videos: Number of its video, `[N]`. Numbers begin at 0 and have no gaps.
    """
    pairs = sorted(set(zip(texts, videos, strict=True)))
    by_text: list[list[int]] = [[] for _ in range(max(texts) + 1)]
    by_video: list[list[int]] = [[] for _ in range(max(videos) + 1)]
    for text, video in pairs:
        by_text[text].append(video)
        by_video[video].append(text)
    return by_text, by_video


def retrieval_metrics(scores: np.ndarray, texts: Sequence[int], videos: Sequence[int]) -> dict[str, float]:
    """Return the metrics of one level in both directions under the reference's names, such as `t2v-r@1`.

    Args:
      scores: Scores of all distinct texts and videos.
      texts: Number of the text of each annotated pair; see `matches`.
      videos: Number of its video.
    """
    by_text, by_video = matches(texts, videos)
    found = {"t2v": ranking_metrics(scores, by_text), "v2t": ranking_metrics(np.transpose(scores), by_video)}
    return {f"{way}-{NAMES[name]}": value for way, metrics in found.items() for name, value in metrics.items()}


def accuracy(predicted: np.ndarray, labels: Sequence[Sequence[int]]) -> float:
    """Return the share of questions that are answered rightly, rounded to 4 digits.

    Args:
      predicted: Label that is predicted for each question, `[N]`.
      labels: Right labels of each question; -1 for an answer outside of the vocabulary, which counts as wrong.
    """
    right = [int(label) in own for label, own in zip(predicted, labels, strict=True)]
    return round(float(np.mean(right)), 4)

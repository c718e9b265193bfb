"""Losses of SNP-S3: level 1 (global contrast), level 2 (cross-modal matching), local matching, masked words.

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp. What the reference computes on one device alone (level 2,
masked words, matching pairs) is computed per group of consecutive examples; see `config.batch_groups`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vlm_jax.losses.momentum import queue_nce
from vlm_jax.losses.nce import grouped_mil_nce
from vlm_jax.text.masking import IGNORED

LOWERED = 100.0
"""Distance by which a text's own video is put out of the reach of the search for hard negatives."""
LEAST_WEIGHT = 0.2


def clip_scores(texts: jax.Array, clips: jax.Array) -> jax.Array:
    """Return the scores of texts `[B, D]` and clips `[B, C, D]`, `[B, B, C]`: row text, column video, then clip."""
    wide = jnp.promote_types(jnp.result_type(texts, clips), jnp.float32)
    return jnp.einsum("td,vcd->tvc", texts.astype(wide), clips.astype(wide))


def word_scores(words: jax.Array, clips: jax.Array) -> jax.Array:
    """Return the scores of captions with their chosen words, `[B, B, C]`: log-sum-exp over a caption's words.

    Args:
      words: Vectors of the chosen words, not normalised, `[B, W, D]`.
      clips: Clip embeddings, `[B, C, D]`.
    """
    wide = jnp.promote_types(jnp.result_type(words, clips), jnp.float32)
    return jax.nn.logsumexp(jnp.einsum("twd,vcd->twvc", words.astype(wide), clips.astype(wide)), 1)


def over_clips(scores: jax.Array) -> jax.Array:
    """Return the scores of videos, `[B, B]`, from those of their clips, `[B, B, C]`: the log-sum-exp."""
    return jax.nn.logsumexp(scores, -1)


def in_batch(scores: jax.Array) -> jax.Array:
    """Return the MIL-NCE loss of clip scores `[B, B, C]`, in which a text counts once per clip."""
    batch, _, clips = scores.shape
    return grouped_mil_nce(jnp.repeat(scores.reshape(batch, batch * clips), clips, 0), clips)


def momentum_contrast(
    texts: jax.Array,
    clips: jax.Array,
    text_keys: jax.Array,
    clip_keys: jax.Array,
    text_queue: jax.Array,
    clip_queue: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Return the losses of clips against texts and of texts against clips; level 1 in training is their mean.

    A clip has one positive, its video's text; a text has all clips of its video.

    Args:
      texts: Text embeddings, `[B, D]`.
      clips: Clip embeddings, `[B, C, D]`.
      text_keys: Text embeddings of the key encoder, `[B, D]`.
      clip_keys: Clip embeddings of the key encoder, `[B, C, D]`.
      text_queue: Text keys of earlier batches, `[K, D]`.
      clip_queue: Clip keys of earlier batches, `[K, D]`.
      temperature: Divisor of the scores.
    """
    batch, count, width = clips.shape
    own_text = jnp.repeat(text_keys, count, 0)[:, None]
    video_to_text = queue_nce(clips.reshape(batch * count, width), own_text, text_queue, temperature)
    return video_to_text, queue_nce(texts, clip_keys, clip_queue, temperature)


def hard_videos(scores: jax.Array, own: jax.Array, method: str) -> jax.Array:
    """Return the videos that the texts of a group are matched with in level 2, int32 `[B, B]`.

    Row i lists the B best negatives of text i; its entry i is then replaced by the text's own video. The own video can
    occur twice where the batch has no other B videos.

    Args:
      scores: Level-1 scores of the group's texts and all videos, `[B, N]`.
      own: Index of each text's own video, `[B]`.
      method: 'top_k' for the highest scores, or 'nearliest' (the reference's spelling) for those that are nearest to
        the score of the own video.
    """
    rows = jnp.arange(len(scores))
    score = scores[rows, own]
    if method == "top_k":
        order = scores.at[rows, own].add(-LOWERED)
    else:
        order = -jnp.abs(scores - score[:, None]).at[rows, own].set(LOWERED)
    best = jax.lax.top_k(order, len(scores))[1]
    return best.at[rows, rows].set(own)


def hard_weights(own_scores: jax.Array) -> jax.Array:
    """Return the weights of a group's texts in level 2 by the level-1 scores of their own videos, `[B]`.

    Scores d above the mean have the weight `max((mean - min) / (d - min), 0.2)`, others 1. There is no gradient.
    """
    scores = jax.lax.stop_gradient(own_scores)
    mean, least = scores.mean(), scores.min()
    above = scores > mean
    ratio = (mean - least) / jnp.where(above, scores - least, 1)
    return jnp.where(above, jnp.maximum(ratio, LEAST_WEIGHT), 1.0)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the labels that are not `IGNORED`; 0 if there are none.

    Args:
      logits: `[..., A]`.
      labels: Integers, `[...]`.
    """
    counted = labels != IGNORED
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[..., None], -1)[..., 0]
    losses = jax.nn.logsumexp(logits, -1) - chosen
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)


def hit_rate(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of the labels that are not `IGNORED` whose logit is the largest; the first of equals counts."""
    counted = labels != IGNORED
    return ((logits.argmax(-1) == labels) & counted).sum() / (counted.sum() + 1e-6)


def matching_pairs(positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return loss and hit rate of the logits `[B, 2]` of matching captions (label 1) and false ones (label 0)."""
    logits = jnp.concatenate([positive, negative])
    labels = jnp.repeat(jnp.array([1, 0]), jnp.array([len(positive), len(negative)]), total_repeat_length=len(logits))
    return cross_entropy(logits, labels), hit_rate(logits, labels)


def mean_over_groups(loss: Callable[..., jax.Array], groups: int, *arrays: jax.Array) -> jax.Array:
    """Return the mean of a loss over groups of consecutive examples.

    Args:
      loss: Function of the groups' arrays, such as `cross_entropy`.
      groups: Number of groups, G; it divides B.
      arrays: Arguments of the loss, `[B, ...]` each.
    """
    return jax.vmap(loss)(*(each.reshape(groups, -1, *each.shape[1:]) for each in arrays)).mean()

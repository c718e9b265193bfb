"""What SNP-S3 is trained for: six losses of pre-training, and those of retrieval and of both forms of questions.

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp. Losses and batch metrics have the reference's names; all
weights are 1.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vlm_jax.losses.momentum import enqueue, move_towards
from vlm_jax.losses.nce import grouped_mil_nce
from vlm_jax.systems.snps3 import loss as losses
from vlm_jax.systems.snps3.attentive import sometimes_attended
from vlm_jax.systems.snps3.metrics import batch_metrics
from vlm_jax.systems.snps3.model import Clips, SnpS3
from vlm_jax.text.masking import IGNORED
from vlm_jax.types import Batch, ModelState, Params, Variables

MOMENTUM = "momentum"
"""Collection of the key encoders, the queues and their pointers."""
RANDOM = ("dropout", "drop_path", "attention")
"""Names of the generators of a forward pass."""
FAR = -1e9
"""Logit of an option that does not exist."""

Reports = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the objectives.

    Attributes:
      head: What the model is trained for, one of `config.HEADS`.
      clips: Number of clips per video, C.
      groups: Number of groups of consecutive examples; level 2, masked words and pairs are computed in each alone.
      special: Ids of padding, CLS and SEP.
      mask_id: Id of the mask token.
      most_masked: Number of masked words of a caption at most; only so many get logits.
      attentive: If true, half of the groups mask what the text encoder attends to.
      word_stages: Where the vectors of significant words are taken, 'before' and 'after' the text encoder.
      strict: If true, the text encoder is applied once more for significant words, to the caption restored from the
        masked one.
      hard_mining: Choice of the videos of level 2: '' for those of the group, 'top_k' or 'nearliest'.
      reweight: If true, the texts of level 2 are weighted by level 1.
      momentum: Decay and temperature of momentum contrast in level 1; None for the loss within the batch.
    """

    head: str
    clips: int
    groups: int
    special: tuple[int, int, int]
    mask_id: int
    most_masked: int
    attentive: bool = True
    word_stages: tuple[str, ...] = ()
    strict: bool = False
    hard_mining: str = ""
    reweight: bool = False
    momentum: tuple[float, float] | None = None


class Outputs(NamedTuple):
    """Outputs of one forward pass that further computations need: text embeddings `[B, D]` and clips."""

    text: jax.Array
    clips: Clips


def objective(
    model: SnpS3, settings: Settings, params: Params, state: ModelState, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, Reports, ModelState]:
    """Return the loss, all losses and batch metrics by name, and the new model state.

    Args:
      model: Network.
      settings: Settings.
      params: Parameters.
      state: Model state, with the collection `MOMENTUM` if momentum contrast is used.
      batch: Global training batch of the head.
      key: Key of dropout, stochastic depth and attentive masking in training; None for evaluation, where level 1 is the
        loss within the batch.
    """
    train, rngs, momentum_key = key is not None, {}, None
    if train:
        momentum_key, *others = jax.random.split(key, 1 + len(RANDOM))
        rngs = dict(zip(RANDOM, others, strict=True))
    fixed = {name: tree for name, tree in state.items() if name != MOMENTUM}
    found, reports, outputs = model.apply(
        {"params": params, **fixed}, batch, settings, train, method=FORWARD[settings.head], rngs=rngs
    )
    if outputs is not None:
        scores = losses.clip_scores(outputs.text, outputs.clips.embeddings)
        reports |= _with_prefix("l1", losses.over_clips(scores))
        if train and settings.momentum:
            level1, state = _momentum_contrast(model, settings, params, state, batch, outputs, momentum_key)
        else:
            level1 = losses.in_batch(scores)
        found = {"level1_similarity_loss": level1, **found}
    return sum(found.values()), found | reports, state


def _pretraining(module: SnpS3, batch: Batch, settings: Settings, train: bool) -> tuple[Reports, Reports, Outputs]:
    mask, groups = batch["raw_mask"].astype(bool), settings.groups
    clips = module.clips(batch["video"], settings.clips, batch.get("size"), train)
    text = module.bert.text(batch["raw"], mask, train)
    outputs = Outputs(text.embedding, clips)
    found, reports = _level2(module, batch["masked"], mask, outputs, settings, train)

    for stage in settings.word_stages:
        vectors = _word_vectors(module, batch, text.sequence, mask, stage, settings.strict, train)
        scores = losses.word_scores(vectors, clips.embeddings)
        found[f"VWM_{stage}_similarity_loss"] = losses.in_batch(scores)
        reports |= _with_prefix(f"VWM_{stage}", losses.over_clips(scores), "r@")

    ids, labels = batch["masked"], batch["labels"]
    if train and settings.attentive:
        key, special = module.make_rng("attention"), settings.special
        importance, unmasked = text.importance, batch["raw"]
        ids, labels = sometimes_attended(key, importance, unmasked, ids, labels, special, settings.mask_id, groups)
    # Masked words come first; only these get logits, since the vocabulary is large.
    places = jax.lax.top_k((labels != IGNORED).astype(jnp.int32), min(settings.most_masked, labels.shape[1]))[1]
    labels = jnp.take_along_axis(labels, places, 1)
    seen = module.bert.cross(ids, mask, clips.tokens, train)
    for name, sequence, with_video in (
        ("masked_lm_text_encoder", text.sequence, False),
        ("masked_lm", seen.text, True),
    ):
        hidden = jnp.take_along_axis(sequence, places[..., None], 1)
        logits = module.masked_words(hidden, with_video=with_video)
        found[f"{name}_loss"] = losses.mean_over_groups(losses.cross_entropy, groups, logits, labels)
        reports[f"{name}_acc"] = losses.mean_over_groups(losses.hit_rate, groups, logits, labels)

    false = module.bert.pool_cross(batch["false"], batch["false_mask"].astype(bool), clips.tokens, train)
    pairs = module.pair_head(jnp.stack([seen.pooled, false], 1))
    sides = jnp.broadcast_to(jnp.array([1, 0]), pairs.shape[:2])
    found["itm_loss"] = losses.mean_over_groups(losses.cross_entropy, groups, pairs, sides)
    reports["itm_acc"] = losses.mean_over_groups(losses.hit_rate, groups, pairs, sides)
    return found, reports, outputs


def _word_vectors(
    module: SnpS3, batch: Batch, encoded: jax.Array, mask: jax.Array, stage: str, strict: bool, train: bool
) -> jax.Array:
    """Return the vectors of the chosen words of every caption, `[B, W, D]`."""
    if stage == "before" or strict:
        restored = jnp.where(batch["labels"] == IGNORED, batch["masked"], batch["labels"])
        encoded = module.bert.embed_text(restored, train)
        if stage == "after":
            encoded = module.bert.encode(encoded, mask, train)[0]
    return jnp.take_along_axis(encoded, batch["words"][..., None], 1)


def _retrieval(module: SnpS3, batch: Batch, settings: Settings, train: bool) -> tuple[Reports, Reports, Outputs]:
    mask = batch["text_mask"].astype(bool)
    clips = module.clips(batch["video"], settings.clips, batch.get("size"), train)
    outputs = Outputs(module.bert.text(batch["text"], mask, train).embedding, clips)
    return *_level2(module, batch["text"], mask, outputs, settings, train), outputs


def _level2(
    module: SnpS3, ids: jax.Array, mask: jax.Array, outputs: Outputs, settings: Settings, train: bool
) -> tuple[Reports, Reports]:
    """Score every text of a group with its videos, or with hard negatives from the whole batch."""
    groups, batch = settings.groups, len(ids)
    tokens, own = outputs.clips.tokens, batch // groups
    weights = None
    if settings.hard_mining or settings.reweight:
        scores = losses.over_clips(losses.clip_scores(outputs.text, outputs.clips.embeddings))
        if settings.reweight:
            weights = jax.vmap(losses.hard_weights)(jnp.diagonal(scores).reshape(groups, own))
    if settings.hard_mining:
        choose = functools.partial(losses.hard_videos, method=settings.hard_mining)
        numbers = jnp.arange(batch).reshape(groups, own)
        chosen = tokens[jax.vmap(choose)(scores.reshape(groups, own, batch), numbers)]
    else:
        grouped = tokens.reshape(groups, 1, own, *tokens.shape[1:])
        chosen = jnp.broadcast_to(grouped, (groups, own, own, *tokens.shape[1:]))

    def repeated(array: jax.Array) -> jax.Array:
        return jnp.repeat(array.reshape(batch, 1, -1), own, 1).reshape(batch * own, -1)

    flat = chosen.reshape(batch * own, *tokens.shape[1:])
    scores = module.match(repeated(ids), repeated(mask), flat, train).reshape(groups, own, own)
    if weights is None:
        loss = jax.vmap(grouped_mil_nce)(scores).mean()
    else:
        loss = jax.vmap(lambda own, factor: grouped_mil_nce(own, weights=factor))(scores, weights).mean()
    metrics = {name: value.mean() for name, value in jax.vmap(batch_metrics)(scores).items()}
    return {"level2_similarity_loss": loss}, {f"l2_{name}": value for name, value in metrics.items()}


def _answers(module: SnpS3, batch: Batch, settings: Settings, train: bool) -> tuple[Reports, Reports, None]:
    tokens = module.clips(batch["video"], settings.clips, batch.get("size"), train).tokens
    logits = module.answer(batch["text"], batch["text_mask"].astype(bool), tokens, train)
    labels = batch["labels"]
    # A question with several right answers counts with the sum of their losses.
    every = jnp.broadcast_to(logits[:, None], (*labels.shape, logits.shape[-1]))
    asked = jnp.maximum((labels >= 0).any(1).sum(), 1)
    loss = losses.cross_entropy(every, labels) * (labels >= 0).sum() / asked
    right = (logits.argmax(-1)[:, None] == labels).any(1)
    return {"cross_entropy": loss}, {"accuracy": right.mean()}, None


def _choices(module: SnpS3, batch: Batch, settings: Settings, train: bool) -> tuple[Reports, Reports, None]:
    tokens = module.clips(batch["video"], settings.clips, batch.get("size"), train).tokens
    scores = choice_scores(module, batch, tokens, train)
    return (
        {"cross_entropy": losses.cross_entropy(scores, batch["label"])},
        {"accuracy": losses.hit_rate(scores, batch["label"])},
        None,
    )


def choice_scores(module: SnpS3, batch: Batch, tokens: jax.Array, train: bool = False) -> jax.Array:
    """Return the level-2 scores of all options, `[B, O]`; `FAR` for an option that does not exist.

    Args:
      module: Network.
      batch: `text` and `text_mask` `[B, O, L]`, `option_mask` `[B, O]`.
      tokens: Clip tokens, `[B, C, D]`.
      train: If true, dropout is active.
    """
    ids = batch["text"]
    count, options, length = ids.shape
    every = jnp.repeat(tokens, options, 0)
    mask = batch["text_mask"].reshape(-1, length).astype(bool)
    scores = module.match(ids.reshape(-1, length), mask, every, train).reshape(count, options)
    return jnp.where(batch["option_mask"], scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), FAR)


def _momentum_contrast(
    model: SnpS3,
    settings: Settings,
    params: Params,
    state: ModelState,
    batch: Batch,
    outputs: Outputs,
    key: jax.Array,
) -> tuple[jax.Array, ModelState]:
    """Return the loss of level 1 against the queues, and the state with moved key encoders and new keys."""
    decay, temperature = settings.momentum
    held = state[MOMENTUM]
    moved = move_towards(held["encoders"], jax.lax.stop_gradient(key_parameters(params)), decay)
    variables = {"params": moved} | ({"frozen": state["frozen"]} if "frozen" in state else {})
    rngs = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))
    text, clips = jax.lax.stop_gradient(model.apply(variables, batch, settings, method=_keys, rngs=rngs))
    contrast = losses.momentum_contrast(
        outputs.text, outputs.clips.embeddings, text, clips, held["text_queue"], held["clip_queue"], temperature
    )
    text_queue, text_pointer = enqueue(held["text_queue"], held["text_pointer"], text)
    clip_queue, clip_pointer = enqueue(held["clip_queue"], held["clip_pointer"], clips.reshape(-1, clips.shape[-1]))
    new = {
        "encoders": moved,
        "text_queue": text_queue,
        "clip_queue": clip_queue,
        "text_pointer": text_pointer,
        "clip_pointer": clip_pointer,
    }
    return sum(contrast) / 2, {**state, MOMENTUM: new}


def _keys(module: SnpS3, batch: Batch, settings: Settings) -> tuple[jax.Array, jax.Array]:
    ids, mask = ("raw", "raw_mask") if settings.head == "pretraining" else ("text", "text_mask")
    text = module.bert.text(batch[ids], batch[mask].astype(bool), train=True).embedding
    return text, module.clips(batch["video"], settings.clips, batch.get("size"), train=True).embeddings


def key_parameters(params: Params) -> dict[str, Any]:
    """Return the parameters that the key encoders are copies of: visual encoder and text encoder."""
    return {
        "visual": params["visual"],
        "bert": {name: own for name, own in params["bert"].items() if name != "cross_pooler"},
    }


def copy_encoders(variables: Variables) -> dict[str, Any]:
    """Return the variables with the key encoders as copies of the encoders."""
    copies = jax.tree.map(lambda array: array.copy(), key_parameters(variables["params"]))
    return {**variables, MOMENTUM: {**variables[MOMENTUM], "encoders": copies}}


def _with_prefix(prefix: str, scores: jax.Array, recall: str = "r_") -> Reports:
    metrics: Mapping[str, jax.Array] = batch_metrics(scores)
    return {f"{prefix}_{name.replace('r_', recall)}": value for name, value in metrics.items()}


FORWARD = {
    "pretraining": _pretraining,
    "retrieval": _retrieval,
    "question_answering": _answers,
    "multiple_choice": _choices,
}
"""Forward pass of each head: its own losses, its metrics, and what level 1 compares, if the head has that."""

"""Task of SNP-S3: pre-training of video and text, retrieval, and questions about videos (Wang et al. 2023)."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.losses.momentum import random_queue
from vlm_jax.models.bert import Bert
from vlm_jax.models.pvt import PyramidTransformer
from vlm_jax.models.resnet import ResNet
from vlm_jax.models.swin3d import VideoSwin
from vlm_jax.systems.snps3.config import HEADS
from vlm_jax.systems.snps3.evaluation import make_evaluators
from vlm_jax.systems.snps3.masking import number_to_mask
from vlm_jax.systems.snps3.model import SnpS3, VisualEncoder
from vlm_jax.systems.snps3.objectives import MOMENTUM, Settings, choice_scores, copy_encoders, key_parameters, objective
from vlm_jax.task import Aux, Evaluator, Task
from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, Variables

NETWORKS = {"swin": VideoSwin, "pvt": PyramidTransformer, "resnet": functools.partial(ResNet, frozen=True)}
STAGES = {"": (), "before": ("before",), "after": ("after",), "both": ("before", "after")}
FORMS = ("crop", "whole")
MINING = ("", "top_k", "nearliest")
MOST_LABELS = 1
"""Number of right answers to a question; data with more make larger batches."""


def make_task(config: ConfigDict) -> Task:
    """Build the task.

    Raises:
      ConfigError: If the model, the head, the data or the evaluators of the config are invalid.
    """
    settings, model = make_settings(config), make_model(config)
    specs, encoders = batch_specs(config), make_encoders(model, config)

    def init(key: jax.Array, batch: Batch) -> Variables:
        key, text_key, clip_key = jax.random.split(key, 3)
        variables = dict(model.init(key, batch, settings, method=_touch))
        bert = dict(variables["params"]["bert"])
        variables["params"] = {**variables["params"], "bert": {**bert, "cross_pooler": bert["pooler"]}}
        if settings.momentum is None:
            return variables
        width, wanted = config.model.features, config.momentum
        state = {
            "encoders": key_parameters(variables["params"]),
            "text_queue": random_queue(text_key, wanted.text_queue, width),
            "clip_queue": random_queue(clip_key, wanted.clip_queue, width),
            "text_pointer": jnp.zeros((), jnp.int32),
            "clip_pointer": jnp.zeros((), jnp.int32),
        }
        return {**variables, MOMENTUM: state}

    def loss_fn(params: Params, model_state: ModelState, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        loss, reports, model_state = objective(model, settings, params, model_state, batch, key)
        return loss, Aux(reports, model_state)

    def train_data(shard: DataShard) -> Pipeline:
        if config.data.synthetic:
            return SyntheticPipeline(next(iter(specs.values())), shard)
        if config.words.matching and config.head == "pretraining" and not config.words.ranks:
            raise ConfigError(
                f"config.words.ranks: empty, but config.words.matching is {config.words.matching!r}; give the ranks of "
                "words (python -m data_prep.snps3 words), or set config.words.matching to ''"
            )
        from vlm_jax.systems.snps3 import data

        return data.train_pipeline(config, shard)

    return Task(
        name="snps3",
        batch_specs=specs,
        init=init,
        loss_fn=loss_fn,
        train_data=train_data,
        evaluators=make_evaluators(config, encoders) | _validations(config, model, settings),
        encoders=encoders,
        partition_rules=((f"{MOMENTUM}/.*_queue$", PartitionSpec("model")),),
        after_init=copy_encoders if settings.momentum else None,
        run_state=(MOMENTUM,) if settings.momentum else (),
    )


def make_settings(config: ConfigDict) -> Settings:
    """Return the settings of the objectives.

    Raises:
      ConfigError: If a key is invalid; it names the key.
    """
    for key, value, allowed in (
        ("head", config.head, HEADS),
        ("words.matching", config.words.matching, tuple(STAGES)),
        ("loss.hard_mining", config.loss.hard_mining, MINING),
        ("frames.form", config.frames.form, FORMS),
    ):
        if value not in allowed:
            raise ConfigError(f"config.{key}: {value!r} is not one of {', '.join(map(repr, allowed))}")
    contrast = config.momentum.enabled and config.head in ("pretraining", "retrieval")
    if contrast:
        clips = config.batch_size * config.frames.clips
        for key, found, least in (
            ("text_queue", config.momentum.text_queue, config.batch_size),
            ("clip_queue", config.momentum.clip_queue, clips),
        ):
            if found < least:
                raise ConfigError(f"config.momentum.{key}: {found}, expected at least the {least} keys of a batch")
    *special, mask_id = config.text.special
    room = config.text.length - 2
    significant = config.words.masking and (config.words.ranks or config.data.synthetic)
    # Attentive masking takes no more than number_to_mask does.
    most = max(1, *map(number_to_mask, range(room + 1))) if significant else room
    return Settings(
        head=config.head,
        clips=config.frames.clips,
        groups=config.batch_groups,
        special=tuple(special),
        mask_id=mask_id,
        most_masked=most,
        attentive=config.loss.attentive_masking,
        word_stages=STAGES[config.words.matching],
        strict=config.strict,
        hard_mining=config.loss.hard_mining,
        reweight=config.loss.reweight,
        momentum=(config.momentum.decay, config.momentum.temperature) if contrast else None,
    )


def make_model(config: ConfigDict) -> SnpS3:
    """Build the network.

    Raises:
      ConfigError: If a key of `config.model` is invalid; it names the key.
    """
    wanted, dtype = config.model, jnp.dtype(config.model.dtype)
    sizes = {name: _hashable(value) for name, value in wanted.visual.items() if name != "name"}
    if wanted.visual.name not in NETWORKS:
        raise ConfigError(f"config.model.visual.name: {wanted.visual.name!r} is not one of {', '.join(NETWORKS)}")
    if wanted.features % wanted.heads:
        raise ConfigError(
            f"config.model.heads: {wanted.heads} does not divide config.model.features = {wanted.features}"
        )
    if wanted.visual.name == "swin":
        width = wanted.visual.features * 2 ** (len(wanted.visual.depths) - 1)
        if width != wanted.features:
            raise ConfigError(
                f"config.model.visual.features: the last stage has {width} channels, expected config.model.features = "
                f"{wanted.features}"
            )
    if wanted.visual.name != "resnet":
        sizes["remat"] = wanted.remat
    network = NETWORKS[wanted.visual.name](**sizes, dtype=dtype)
    groups, project = config.batch_groups, wanted.visual.name != "swin"
    pad_id, _, separator_id, _ = config.text.special
    bert = Bert(
        config.text.vocabulary_size,
        pad_id,
        separator_id,
        features=wanted.features,
        num_layers=wanted.layers,
        heads=wanted.heads,
        hidden=wanted.hidden,
        positions=wanted.positions,
        dropout=wanted.dropout,
        remat=wanted.remat,
        dtype=dtype,
    )
    visual = VisualEncoder(network, wanted.features, project, groups, config.strict, dtype)
    return SnpS3(visual, bert, wanted.num_answers, wanted.dropout, dtype)


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def batch_specs(config: ConfigDict) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of the global training batch: one entry, or one per height and width of whole frames."""
    frames, length = config.frames, config.text.length
    kind = np.float32 if config.strict else np.uint8
    sides = [(frames.size, frames.size)]
    if frames.form == "whole":
        sides = [(height, width) for height in frames.heights for width in frames.widths]
    text = ((length,), np.int32)
    shapes = {
        "pretraining": dict.fromkeys(("raw", "raw_mask", "masked", "labels", "false", "false_mask"), text),
        "retrieval": {"text": text, "text_mask": text},
        "question_answering": {"text": text, "text_mask": text, "labels": ((MOST_LABELS,), np.int32)},
        "multiple_choice": {
            "text": ((config.data.options, length), np.int32),
            "text_mask": ((config.data.options, length), np.int32),
            "option_mask": ((config.data.options,), np.bool_),
            "label": ((), np.int32),
        },
    }[config.head]
    if config.head == "pretraining" and config.words.matching:
        shapes["words"] = ((config.words.chosen,), np.int32)
    if frames.form == "whole":
        shapes["size"] = ((2,), np.int32)
    count = frames.clips * frames.frames_per_clip

    def spec(height: int, width: int) -> dict[str, jax.ShapeDtypeStruct]:
        every = {"video": ((count, height, width, 3), kind), **shapes}
        return {name: jax.ShapeDtypeStruct((config.batch_size, *own), dtype) for name, (own, dtype) in every.items()}

    return {"-".join(map(str, side)) if frames.form == "whole" else "": spec(*side) for side in sides}


def _touch(module: SnpS3, batch: Batch, settings: Settings) -> None:
    """Use all parts that the head trains, so that their parameters exist."""
    clips = module.clips(batch["video"][:1], settings.clips)
    ids = batch["raw" if settings.head == "pretraining" else "text"]
    ids = ids.reshape(-1, ids.shape[-1])[:1]
    text = module.bert.text(ids, ids >= 0)
    if settings.head == "question_answering":
        module.answer(ids, ids >= 0, clips.tokens)
        return
    module.match(ids, ids >= 0, clips.tokens)
    if settings.head == "pretraining":
        module.masked_words(text.sequence, with_video=True)
        module.masked_words(text.sequence, with_video=False)
        module.pair_head(text.pooled)


def make_encoders(model: SnpS3, config: ConfigDict) -> dict[str, Callable[[Variables, Batch], Outputs]]:
    """Return the functions of evaluation and prediction.

    `video`: `clips` `[B, C, D]` of length 1 and `tokens` `[B, C, D]` of `video` `[B, N, H, W, 3]`, with `size` `[B, 2]`
    for whole frames. `text`: `text` `[N, D]` of length 1 for `text` and `text_mask` `[N, L]`. `match`: `scores` `[N]`
    of level 2 for texts and their `tokens` `[N, C, D]`; `answer`: `scores` `[N, A]`; `choose`: `scores` `[B, O]` of
    `text` `[B, O, L]` with `option_mask` `[B, O]`.
    """

    def variables_of(variables: Variables) -> Variables:
        return {name: tree for name, tree in variables.items() if name != MOMENTUM}

    def video(variables: Variables, batch: Batch) -> Outputs:
        inputs = batch["video"], config.frames.clips, batch.get("size")
        found = model.apply(variables_of(variables), *inputs, method="clips")
        wide = jnp.promote_types(found.tokens.dtype, jnp.float32)
        return {"clips": found.embeddings, "tokens": found.tokens.astype(wide)}

    def text(variables: Variables, batch: Batch) -> Outputs:
        inputs = batch["text"], batch["text_mask"].astype(bool)
        return {
            "text": model.apply(
                variables_of(variables), *inputs, method=lambda own, *given: own.bert.text(*given)
            ).embedding
        }

    def crossed(method: str) -> Callable[[Variables, Batch], Outputs]:
        def run(variables: Variables, batch: Batch) -> Outputs:
            inputs = batch["text"], batch["text_mask"].astype(bool), batch["tokens"]
            scores = model.apply(variables_of(variables), *inputs, method=method)
            return {"scores": scores.astype(jnp.promote_types(scores.dtype, jnp.float32))}

        return run

    def choose(variables: Variables, batch: Batch) -> Outputs:
        return {"scores": model.apply(variables_of(variables), batch, batch["tokens"], method=choice_scores)}

    return {"video": video, "text": text, "match": crossed("match"), "answer": crossed("answer"), "choose": choose}


def _validations(config: ConfigDict, model: SnpS3, settings: Settings) -> dict[str, Evaluator]:
    """Return the evaluators of kind 'loss': the losses of held-out batches, by which pre-training is judged."""

    def predict(variables: Variables, batch: Batch) -> Outputs:
        params, state = variables["params"], {name: own for name, own in variables.items() if name != "params"}
        count = len(batch["video"])
        quiet = dataclasses.replace(settings, groups=1)
        total, reports, _ = objective(model, quiet, params, state, batch, None)
        # Losses belong to a batch; every item carries those of its own.
        return {name: jnp.full(count, value) for name, value in {"total_loss": total, **reports}.items()}

    def evaluator(wanted: ConfigDict) -> Evaluator:
        def data(shard: DataShard) -> Pipeline:
            from vlm_jax.systems.snps3 import data

            return data.evaluation_pipeline(config, wanted, shard)

        return Evaluator(
            data=data,
            predict_fn=predict,
            summarize=lambda outputs: {name: float(values.mean()) for name, values in outputs.items()},
            protocol={
                "task": "losses of pre-training on batches of held-out examples, without dropout and without queues",
                "data": wanted.directory,
                "split": wanted.split,
            },
        )

    return {name: evaluator(wanted) for name, wanted in config.evaluation.items() if wanted.kind == "loss"}

"""Task of GroundNLQ, which finds the moment of a long video that answers a question (Hou et al. 2023)."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.metrics.moments import moment_metrics
from vlm_jax.systems.groundnlq import answers, samples
from vlm_jax.systems.groundnlq.decoding import Decoding, decode
from vlm_jax.systems.groundnlq.loss import grounding_loss
from vlm_jax.systems.groundnlq.model import GroundNLQ
from vlm_jax.task import Aux, Evaluator, Task
from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, Variables

NORMALISER = "loss"
"""Collection of the running counts of positives, one per group; they belong to a run, not to the model."""
NOT_OF_THE_MODEL = ("video_dim", "text_dim", "ranges")
"""Keys of `config.model` that describe inputs and targets; all others are attributes of `GroundNLQ`."""
INPUTS = ("video", "video_mask", "text", "text_mask", "extent")


class Store(samples.ClipFeatures, Protocol):
    """Features of clips that are loaded on demand (`vlm_jax.data.feature_store.FeatureStore`)."""

    def load(self, clips: Iterable[str]) -> None:
        """Read clips into memory."""

    def read(self, clips: Iterable[str]) -> set[str]:
        """Read clips into memory and return the names of those that do not exist."""


Stores = Callable[[str], Store]
"""Function from a directory to the features of its clips; the same store at every call."""


def make_task(config: ConfigDict) -> Task:
    """Build the task.

    Raises:
      ConfigError: If model, buckets or decoding are invalid.
    """
    model, weights, options = make_model(config), config.loss, answers.make_decoding(config)
    specs = batch_specs(config)
    stores = functools.cache(functools.partial(open_store, config))

    def init(key: jax.Array, batch: Batch) -> Variables:
        variables = model.init(key, *(batch[name] for name in INPUTS))
        counts = jnp.full(config.batch_groups, weights.first_normaliser, jnp.float32)
        return {**variables, NORMALISER: {"normaliser": counts}}

    def loss_fn(params: Params, model_state: ModelState, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        inputs = (batch[name] for name in INPUTS)
        levels = model.apply({"params": params}, *inputs, train=True, rngs={"drop_path": key})
        loss, metrics, counts = grounding_loss(
            *levels,
            batch["class_targets"],
            batch["offset_targets"],
            model_state[NORMALISER]["normaliser"],
            label_smoothing=weights.label_smoothing,
            loss_weight=weights.offset_weight,
        )
        return loss, Aux(metrics, {**model_state, NORMALISER: {"normaliser": counts}})

    def train_data(shard: DataShard) -> Pipeline:
        if config.data.synthetic:
            return SyntheticPipeline(specs[next(iter(specs))], shard)
        if config.model.classes != 1:
            raise ConfigError(
                f"config.model.classes: {config.model.classes}, expected 1 for training: questions have one class; "
                "checkpoints of models with several classes can be converted and evaluated"
            )
        from vlm_jax.systems.groundnlq import data

        spec = make_sample_spec(config)
        questions = data.load_queries(config.data.queries, config.data.split, spec, config.data.text_source)
        return samples.train_pipeline(questions, load_clips(stores, config.data.features, questions), spec, shard)

    return Task(
        name="groundnlq",
        batch_specs=specs,
        init=init,
        loss_fn=loss_fn,
        train_data=train_data,
        evaluators={name: _moments(config, name, model, options, stores) for name in config.moments},
        encoders={
            "levels": functools.partial(read_levels, model),
            "moments": functools.partial(find_moments, model, options),
        },
        run_state=(NORMALISER,),
    )


def make_model(config: ConfigDict) -> GroundNLQ:
    """Build the network.

    Raises:
      ConfigError: If windows do not fit the number of blocks, or heads do not divide the width.
    """
    model = config.model
    blocks = model.cross_blocks + model.plain_blocks
    if len(model.windows) not in (1, blocks + 1):
        raise ConfigError(
            f"config.model.windows: {len(model.windows)} windows, expected 1, or {blocks + 1} for the stem and "
            f"{blocks} blocks of the pyramid"
        )
    if model.dim % model.heads:
        raise ConfigError(f"config.model.heads: {model.heads} heads do not divide config.model.dim = {model.dim}")
    sizes = {name: value for name, value in model.items() if name not in NOT_OF_THE_MODEL}
    lists = {name: tuple(model[name]) for name in ("windows", "empty_classes")}
    return GroundNLQ(**sizes | lists | {"dtype": jnp.dtype(model.dtype)})


def make_sample_spec(config: ConfigDict, *, train: bool = True) -> samples.SampleSpec:
    """Return the settings of batches in a config; if `train` is false, without jitter."""
    return samples.SampleSpec(
        video_dim=config.model.video_dim,
        text_dim=config.model.text_dim,
        max_tokens=config.text.max_tokens,
        max_length=config.model.max_length,
        buckets=tuple(config.data.buckets),
        ranges=tuple(tuple(pair) for pair in config.model.ranges),
        radius=config.loss.radius,
        feature_stride=config.data.feature_stride,
        fps=config.data.fps,
        groups=config.batch_groups,
        jitter=config.data.jitter and train,
        reference_batch=config.evaluate.reference_batch,
    )


def load_clips(stores: Stores, directory: str, questions: Sequence[samples.Question]) -> Store:
    """Return the store of a directory with the clips of questions in memory."""
    store = stores(directory)
    store.load(question.clip for question in questions)
    return store


def open_store(config: ConfigDict, directory: str) -> Store:
    """Return the clips of a folder, checked against the config."""
    from vlm_jax.data.feature_store import FeatureStore

    wanted = {
        "feature_dim": config.model.video_dim,
        "feature_stride": config.data.feature_stride,
        "fps": config.data.fps,
        "video_source": config.data.video_source,
    }
    return FeatureStore(directory, wanted, config.data.dtype)


def batch_specs(config: ConfigDict) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of the global training batch, one entry per length bucket.

    Raises:
      ConfigError: If ranges and levels differ in number, a bucket is not a multiple of the last stride, or the last
        bucket is not the maximal length.
    """
    model, levels = config.model, len(config.model.ranges)
    if levels != 1 + model.cross_blocks + model.plain_blocks:
        raise ConfigError(
            f"config.model.ranges: {levels} ranges, expected one for each of "
            f"{1 + model.cross_blocks + model.plain_blocks} levels"
        )
    buckets, stride = sorted(config.data.buckets), 2 ** (levels - 1)
    if not buckets or buckets[-1] != model.max_length:
        raise ConfigError(
            f"config.data.buckets: {list(buckets)}, expected the last one to be config.model.max_length = "
            f"{model.max_length}"
        )
    for bucket in buckets:
        if bucket % stride or bucket < stride:
            raise ConfigError(f"config.data.buckets: {bucket} is no multiple of the last level's stride {stride}")
    return {str(bucket): _specs(config, bucket) for bucket in buckets}


def _specs(config: ConfigDict, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    model, batch, words = config.model, config.batch_size, config.text.max_tokens
    points = sum(length >> level for level in range(len(model.ranges)))
    shapes = {
        "video": ((length, model.video_dim), jnp.dtype(config.data.dtype)),
        "video_mask": ((length,), np.bool_),
        "text": ((words, model.text_dim), np.float32),
        "text_mask": ((words,), np.bool_),
        "extent": ((words,), np.bool_),
        "class_targets": ((points, model.classes), np.float32),
        "offset_targets": ((points, 2), np.float32),
    }
    return {name: jax.ShapeDtypeStruct((batch, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def read_levels(model: GroundNLQ, variables: Variables, batch: Batch) -> Outputs:
    """Return for every level l `logits_{l}` `[B, T_l, N]`, `offsets_{l}` `[B, T_l, 2]` and `mask_{l}` `[B, T_l]`."""
    levels = model.apply({"params": variables["params"]}, *(batch[name] for name in INPUTS))
    named = {}
    for number, (logits, offsets, mask) in enumerate(zip(*levels, strict=True)):
        named |= {f"logits_{number}": logits, f"offsets_{number}": offsets, f"mask_{number}": mask}
    return named


def find_moments(model: GroundNLQ, options: Decoding, variables: Variables, batch: Batch) -> Outputs:
    """Return the best moments: `segments` `[B, K, 2]` in seconds, `scores` `[B, K]` and the mask `there` `[B, K]`.

    If the batch has `duration` `[B]`, seconds, moments are clipped to it.
    """
    duration = batch.get("duration", jnp.full(len(batch["video"]), jnp.inf))
    levels = model.apply({"params": variables["params"]}, *(batch[name] for name in INPUTS))
    wide = (level.astype(jnp.result_type(level, jnp.float32)) for part in levels[:2] for level in part)
    heads, count = list(wide), len(levels.masks)
    found = decode(heads[:count], heads[count:], levels.masks, duration, options)
    return {"segments": found.segments, "scores": found.scores, "there": found.mask}


def _moments(config: ConfigDict, name: str, model: GroundNLQ, options: Decoding, stores: Stores) -> Evaluator:
    """Return the evaluator that answers every question of a split in its own clip."""
    wanted, spec = config.moments[name], make_sample_spec(config, train=False)

    # Read once, on first use.
    @functools.cache
    def queries() -> list[samples.Question]:
        from vlm_jax.systems.groundnlq import data

        return data.load_queries(wanted.queries, wanted.split, spec, config.data.text_source)

    def data(shard: DataShard) -> Pipeline:
        return samples.evaluation_pipeline(queries(), load_clips(stores, wanted.features, queries()), spec, shard)

    def by_query(outputs: Outputs) -> list[np.ndarray]:
        return answers.by_query(config, queries(), stores(wanted.features), outputs)

    def summarize(outputs: Outputs) -> dict[str, float]:
        truths = [query.spans for query in queries()]
        metrics = {"queries": float(len(truths))}
        if truths and all(len(truth) for truth in truths):
            metrics |= moment_metrics(by_query(outputs), truths, tuple(wanted.thresholds), tuple(wanted.ks))
        return metrics

    def write(outputs: Outputs, folder: Path, origin: Mapping[str, Any]) -> None:
        del origin
        found = by_query(outputs)
        lines = [
            answers.query_line(query, moments) | {"truth": query.spans.tolist()}
            for query, moments in zip(queries(), found, strict=True)
        ]
        (folder / f"{name}_queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        submission = answers.submission(queries(), found)
        if submission:
            (folder / f"{name}_submission.json").write_text(json.dumps(submission))

    return Evaluator(
        data=data,
        predict_fn=functools.partial(find_moments, model, options),
        summarize=summarize,
        write=write,
        protocol={
            "task": "moments by questions, each in its own clip",
            "features": wanted.features,
            "data": wanted.queries,
            "split": wanted.split,
            "thresholds": list(wanted.thresholds),
            "hit": "one of the first K overlaps by more than the threshold, intersection over hull",
            "suppression": f"{options.suppression}, {options.max_moments} moments",
            "shift_seconds": options.shift / options.fps,
            "text_padding": f"to the longest of {config.evaluate.reference_batch} consecutive questions",
            "longer_clips": f"windows of {config.model.max_length} positions that overlap by half",
            "average": "over all questions; one without any moment is given its whole clip",
        },
    )

"""Task of long-term feature banks, which detects the actions of people in films (Wu et al. 2019)."""

import functools
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.data.protocol import find_protocol
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.files import write_atomically
from vlm_jax.models.resnet3d import SlowOnly
from vlm_jax.systems.lfb.actions import action_names, ids_of_columns
from vlm_jax.systems.lfb.annotations import read_excluded
from vlm_jax.systems.lfb.bank import Bank, write_bank
from vlm_jax.systems.lfb.bank_operators import OPERATORS, NonLocalBank
from vlm_jax.systems.lfb.detections import Detections, read_csv, to_json, to_table, write_csv
from vlm_jax.systems.lfb.keyframes import (
    ANNOTATED_PROPOSALS,
    KeyframeTable,
    annotations_path,
    excluded_path,
    read_table,
)
from vlm_jax.systems.lfb.loss import action_loss, scores
from vlm_jax.systems.lfb.metrics import ava_map
from vlm_jax.systems.lfb.model import POOLS, TIME_POOLS, Classifier, Detector, RoiExtractor
from vlm_jax.task import Aux, Evaluator, Task
from vlm_jax.train.sinks import STAMP, ArraySink
from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, Variables

SHOWN = 0.05
"""Smallest score of an action in the JSON lines of an evaluation; the csv has all that count."""
BOXES = ("boxes", "bank", "slots", "size")
"""Arrays of a batch that the detector reads beside `video`, as far as a batch has them."""


def make_task(config: ConfigDict) -> Task:
    """Build the task.

    Raises:
      ConfigError: If the model, the buckets or the evaluators of the config are invalid.
    """
    model, specs = make_model(config), batch_specs(config)
    open_bank = functools.cache(functools.partial(_open_bank, config))

    def init(key: jax.Array, batch: Batch) -> Variables:
        return model.init(key, batch["video"], **_inputs(batch))

    def loss_fn(params: Params, model_state: ModelState, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        outputs, updates = model.apply(
            {"params": params, **model_state},
            batch["video"],
            **_inputs(batch),
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        labels = batch["labels"] & batch["box_mask"][..., None]
        options = {"groups": config.batch_groups, "background_class": config.model.background_class, **config.loss}
        loss, reports = action_loss(outputs["logits"], labels, **options)
        return loss, Aux(reports, {**model_state, **updates})

    def train_data(shard: DataShard) -> Pipeline:
        if config.data.synthetic:
            return SyntheticPipeline(specs[next(iter(specs))], shard)
        from vlm_jax.systems.lfb import data

        return data.train_pipeline(config, open_bank(), shard)

    return Task(
        name="lfb",
        batch_specs=specs,
        init=init,
        loss_fn=loss_fn,
        train_data=train_data,
        evaluators={name: _evaluator(config, name, model, open_bank) for name in config.detection},
        encoders={"boxes": functools.partial(detect_boxes, model, config)},
    )


def make_model(config: ConfigDict) -> Detector:
    """Build the network.

    Raises:
      ConfigError: If a key of `config.model` is invalid; it names the key.
    """
    model = config.model
    for key, allowed in (
        ("operator", OPERATORS),
        ("roi_time_pool", TIME_POOLS),
        ("time_pool", POOLS),
        ("space_pool", POOLS),
    ):
        if model[key] not in allowed:
            raise ConfigError(f"config.model.{key}: {model[key]!r} is not one of {', '.join(allowed)}")
    if len(model.blocks) != 4:
        raise ConfigError(f"config.model.blocks: expected the number of blocks of 4 stages, found {model.blocks}")
    dtype = jnp.dtype(model.dtype)
    fbo = None
    if model.operator == "non_local":
        fbo = NonLocalBank(
            model.latent_dim,
            model.non_local_layers,
            model.pre_activate,
            model.pre_activate_with_norm,
            model.use_scale,
            model.zero_init_out,
            model.bank_dropout,
            dtype,
        )
    return Detector(
        SlowOnly(tuple(model.blocks), model.width, config.batch_groups, dtype),
        RoiExtractor(model.roi_size, model.roi_time_pool, model.with_global, model.roi_aligned, model.roi_samples),
        Classifier(
            config.data.num_classes,
            model.dropout,
            model.dropout_before_pool,
            model.time_pool,
            model.space_pool,
            model.mlp_head,
            dtype,
        ),
        model.operator,
        fbo,
    )


def has_bank(config: ConfigDict) -> bool:
    """Return whether the model looks at a bank."""
    return config.model.operator != "none"


def batch_specs(config: ConfigDict) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of the global training batch, one entry for each pair of a box bucket and a bank bucket.

    Raises:
      ConfigError: If the largest box bucket is smaller than the number of boxes that training samples.
    """
    buckets, most = sorted(config.data.box_buckets), config.targets.max_boxes
    if not buckets or buckets[-1] < most:
        raise ConfigError(
            f"config.data.box_buckets: {list(buckets)}, expected the last one to be at least "
            f"config.targets.max_boxes = {most}"
        )
    rows = sorted(config.data.bank_buckets) if has_bank(config) else [0]
    return {f"{boxes}-{own}": _specs(config, boxes, own) for boxes, own in itertools.product(buckets, rows)}


def _specs(config: ConfigDict, boxes: int, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    clips, size = config.clips, config.clips.size
    shapes = {
        "video": ((clips.num_frames, size, size, 3), np.uint8),
        "boxes": ((boxes, 4), np.float32),
        "box_mask": ((boxes,), np.bool_),
        "labels": ((boxes, config.data.num_classes), np.bool_),
    }
    if rows:
        shapes["bank"] = ((rows, config.model.bank_dim), np.dtype(config.bank.dtype))
        shapes["slots"] = ((boxes, config.bank.window * config.bank.per_second), np.int32)
    return {name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def _inputs(batch: Batch) -> dict[str, jax.Array]:
    """Return what the detector reads beside the video, by the names of its arguments."""
    names = {"bank": "rows", "size": "sizes"}
    return {names.get(name, name): batch[name] for name in BOXES if name in batch}


def detect_boxes(model: Detector, config: ConfigDict, variables: Variables, batch: Batch) -> Outputs:
    """Return `scores` `[B, N, A]` of the actions of boxes, and the `features` `[B, N, C]` that a bank stores.

    Args:
      model: Network.
      config: Config of the run.
      variables: Variables of the network.
      batch: `video` uint8 `[B, T, H, W, 3]` and `size` `[B, 2]`, `boxes` `[B, N, 4]`; with a bank `bank` and `slots`.
    """
    outputs = model.apply(variables, batch["video"], **_inputs(batch))
    wide = outputs["features"].astype(jnp.promote_types(outputs["features"].dtype, jnp.float32))
    return {"scores": scores(outputs["logits"], multilabel=config.loss.multilabel), "features": wide}


def make_source(config: ConfigDict, wanted: ConfigDict, checkpoint: str, fingerprint: str) -> dict[str, Any]:
    """Return what the features of a bank depend on; a film's own bank is made in the same way."""
    clips = {name: config.clips[name] for name in ("num_frames", "interval", "fps", "frame_shift")}
    return {
        "checkpoint": checkpoint,
        "fingerprint": fingerprint,
        "split": wanted.split,
        "short_side": config.clips.evaluation_short_side,
        "proposal_threshold": wanted.proposal_threshold,
        **clips,
    }


def _open_bank(config: ConfigDict) -> Bank | None:
    """Return the bank of a config, None for a model without a bank.

    Raises:
      ConfigError: If the bank is missing, or not the one that the model was trained with.
    """
    if not has_bank(config):
        return None
    folders, trained = list(config.bank.folders), config.bank.source.get("fingerprint", "")
    if not folders:
        raise ConfigError(
            f"config.bank.folders: empty; the operator {config.model.operator!r} needs a bank of its videos, made by "
            "launch/evaluate.py --config configs/lfb_bank.py"
        )
    bank = Bank.open(folders)
    if bank.dim != config.model.bank_dim:
        raise ConfigError(
            f"config.bank.folders: {folders[0]} has features of {bank.dim} numbers, config.model.bank_dim is "
            f"{config.model.bank_dim}"
        )
    found = bank.source.get("fingerprint", "")
    if trained and found != trained:
        raise ConfigError(
            f"config.bank.folders: {folders[0]} was made by another model than the bank of training (fingerprint "
            f"{found[:16] or 'none'}, expected {trained[:16]})"
        )
    return bank


def _evaluator(config: ConfigDict, name: str, model: Detector, open_bank: Callable[[], Bank | None]) -> Evaluator:
    """Return the evaluator of actions at the keyframes of one split, which may also write their features as a bank."""
    wanted = config.detection[name]

    @functools.cache
    def table() -> KeyframeTable:
        return read_table(wanted.directory, wanted.split)

    def data(shard: DataShard) -> Pipeline:
        from vlm_jax.systems.lfb import data

        return data.evaluation_pipeline(config, wanted, open_bank(), shard)

    def predict(variables: Variables, batch: Batch) -> Outputs:
        outputs = detect_boxes(model, config, variables, batch)
        height, width = batch["size"][:, 0], batch["size"][:, 1]
        sides = jnp.stack([width, height, width, height], -1).astype(jnp.float32)
        found = {"scores": outputs["scores"], "boxes": batch["boxes"] / sides[:, None]}
        if wanted.write_bank:
            found["features"] = outputs["features"].astype(config.bank.dtype)
        return found | {"counts": batch["box_mask"].sum(-1)}

    told, least = find_protocol(wanted.directory).get(ANNOTATED_PROPOSALS), f"{wanted.proposal_threshold}, or the best"
    actions = action_names(config.data.actions, config.data.num_classes)
    ids = ids_of_columns(list(actions), config.data.num_classes)

    def found(outputs: Outputs) -> Detections:
        own = table()
        return Detections(own.videos, own.seconds, outputs["counts"], outputs["boxes"], outputs["scores"])

    def summarize(outputs: Outputs) -> dict[str, float]:
        truth, excluded = (path(wanted.directory, wanted.split) for path in (annotations_path, excluded_path))
        counts = {"keyframes": float(len(outputs["counts"])), "boxes": float(len(outputs["boxes"]))}
        if not truth.is_file():
            return counts
        left_out = read_excluded(excluded) if excluded.is_file() else ()
        detected = to_table(found(outputs), wanted.action_threshold, ids)
        return ava_map(read_csv(truth), detected, left_out, actions, wanted.mode) | counts

    def write(outputs: Outputs, folder: Path, origin: Mapping[str, Any]) -> None:
        write_csv(folder / f"{name}.csv", found(outputs), wanted.action_threshold, ids)
        lines = to_json(found(outputs), actions, SHOWN, ids)
        write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        if wanted.write_bank:
            stamp = json.loads((folder / name / STAMP).read_text())
            # Results name a checkpoint of their own run relative to the run's folder.
            run = next((parent.parent for parent in (folder, *folder.parents) if parent.name == "results"), folder)
            checkpoint = str((run / origin["checkpoint"]).absolute())
            source = make_source(config, wanted, checkpoint, stamp["variables"])
            own = table()
            write_bank(folder / name, own.videos, own.seconds, outputs["counts"], outputs["features"], source)

    return Evaluator(
        data=data,
        predict_fn=predict,
        counts="counts",
        sink=(lambda folder: ArraySink(folder / name)) if wanted.write_bank else None,
        summarize=summarize,
        write=write,
        protocol={
            "task": "actions of people at keyframes; frame mAP at an IoU of 0.5, as AVA's",
            "data": wanted.directory,
            "split": wanted.split,
            "mode": wanted.mode,
            "boxes": "those of the annotated people" if told else f"proposals with a score of at least {least}",
            "action_threshold": wanted.action_threshold,
            "short_side": config.clips.evaluation_short_side,
            "frame_shift": config.clips.frame_shift,
            "bank": list(config.bank.folders) if has_bank(config) else [],
            "bank_rows": "drawn at random" if config.bank.random_in_evaluation else "the first of every second",
        },
    )

"""Keys of the reference's configuration, and what they are called here (docs/snps3.md has the table).

Every key of the reference is read, has only one value that is supported, is ignored because the reference does not read
it either or because a command of ours decides it, or is unknown, which is an error.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import yaml

from vlm_jax.errors import ConfigError
from vlm_jax.systems.snps3.config import NO_DECAY
from vlm_jax.systems.snps3.reference_config import DEFAULTS, Tree, flatten

HEADS = {
    "video_pretraining": "pretraining",
    "video_text_retrieval": "retrieval",
    "video_text_classification": "question_answering",
    "video_multi_choice_qa": "multiple_choice",
}
"""Heads by `training_head_type`."""
DATASETS = {
    "pretraining": "video_text_pretrain",
    "retrieval": "video_text_retrieval",
    "question_answering": "video_text_classification",
    "multiple_choice": "video_multi_choice_qa",
}
"""Sections of `dataset_attributes` by head."""
NETWORKS = {"VideoSwinEncoder": "swin", "DetrBatchPVTImageEncoder": "pvt", "DetrImageEncoder": "resnet"}
"""Visual networks by the type of `image_encoder`."""
BACKBONES = {"swin": "video_swin_snps3", "pvt": "pvt_v2_b2", "resnet": "resnet50_imagenet"}
"""Published files of the visual networks."""
FRESH = {
    "pretraining": ("^similarity/", "^word_head/", "^text_word_head/", "^pair_head/", "^visual/(img_fc|output_proj)"),
    "retrieval": ("^similarity/", "^visual/(img_fc|output_proj)"),
    "question_answering": ("^classifier/", "^visual/(img_fc|output_proj)"),
    "multiple_choice": ("^similarity/", "^visual/(img_fc|output_proj)"),
}
"""Variables that the published files of BERT and the visual networks do not have, by head."""
EVALUATORS = {
    "pretraining": "loss",
    "retrieval": "retrieval",
    "question_answering": "answers",
    "multiple_choice": "choices",
}
DATA, MODEL, TRAINING = "dataset_attributes.", "model_attributes.univl.", "training_parameters."
_CAPTIONS = f"{DATA}processors.caption_processor."
_TRAIN, _TEST = (f"{DATA}processors.{split}_frame_processor." for split in ("train", "test"))
_WORDS = f"{MODEL}pretraining_heads.MASK_All_IWords_info."
_MINED = f"{_CAPTIONS}params.intra_VTM."

IGNORED = (
    *("task_attributes.univl_task.*", f"{TRAINING}*sampler.*", f"{TRAINING}pretrained_mapping*", f"{DATA}pretraining"),
    *(f"{DATA}{key}" for key in ("annotations.*", "videos.*", "images.*", "asrs.*", "use_*", "data_root_dir", "fps")),
    *(f"{DATA}{key}" for key in ("video_field_key", "asr_sampler_config.*", "add_false_caption", "labels")),
    *(f"{_CAPTIONS}{key}" for key in ("params.preprocessor.*", "params.tokenizer_config.*", "params.random_truncate")),
    f"{_MINED}vocab_lema_root_dir",
    *(f"{_TRAIN}params.{key}" for key in ("mode", "aug_type", "transforms")),
    *(f"{_TEST}params.{key}" for key in ("mode", "aug_type", "transforms", "crop_size")),
    *(f"{MODEL}{key}" for key in ("arch_type", "half_model_size", "img_embeddings.*", "temporal_encoder.*")),
    *(f"{MODEL}{key}" for key in ("cross_encoder.*", "max_clip_len", "losses", "metrics", "with_*_e*")),
    *(f"{MODEL}text_encoder.{key}" for key in ("type", "params.model_type", "params.num_segments")),
    f"{MODEL}text_encoder.params.bert_model_name",
    *(f"{MODEL}image_encoder.params.{key}" for key in ("model_name", "num_output_features", "pool_type")),
    *(f"{MODEL}image_encoder.params.{key}" for key in ("position_embedding.*", "with_position_embedding")),
    *(f"{MODEL}pretraining_heads.{head}.*" for head in ("transformer_mlm", "text_encoder_mlm", "itm")),
    *(f"{_WORDS}{key}" for key in ("vocab_lema_root_dir",)),
    *(f"{TRAINING}{key}" for key in ("trainer", "experiment_name", "device", "num_*", "patience", "run_type")),
    *(f"{TRAINING}{key}" for key in ("logger_level", "distributed", "local_rank", "static_graph", "data_parallel")),
    *(f"{TRAINING}{key}" for key in ("evalai_*", "report_format", "load_pretrained", "save_dir", "log_dir", "resume")),
    *(
        f"{TRAINING}{key}"
        for key in ("restart", "should_*", "verbose_dump", "pin_memory", "task_size_*", "clip_norm_mode")
    ),
    *(
        f"{TRAINING}{key}"
        for key in ("synchronized_loss", "find_unused_parameters", "disable_tqdm", "replace_speedup_op")
    ),
)
"""Patterns of keys that change nothing here."""

FIXED: dict[str, tuple[Any, ...]] = {
    f"{MODEL}training_stage": ("stage1+stage2",),
    f"{MODEL}with_temporal_encoder": (False,),
    f"{_CAPTIONS}type": ("masked_bert_tokenizer",),
    f"{_CAPTIONS}params.trim_start_token": (False,),
    f"{MODEL}image_encoder.params.freeze": (False,),
    f"{MODEL}image_encoder.params.freeze_bn": (True,),
    f"{MODEL}image_encoder.params.encoder_type": ("resnet50",),
    f"{MODEL}image_encoder.params.replace_stride_with_dilation": ([False, False, False],),
    f"{MODEL}image_encoder.params.output_channels": (768,),
    "optimizer_attributes.type": ("AdamW",),
    f"{TRAINING}sync_bn": (False,),
    f"{TRAINING}gradient_accumulation_steps": (1,),
}
"""Values that are supported, for keys that have no counterpart here."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """Configuration of the reference in keys of ours.

    Attributes:
      keys: Values by key of ours.
      network: Name of the visual network.
      evaluators: Kind and split of the evaluators, by name.
      ignored: Keys of the reference that are not read.
      notes: Lines for the user about what is different.
    """

    keys: dict[str, Any]
    network: str
    evaluators: dict[str, tuple[str, str]]
    ignored: list[str]
    notes: list[str]


class _Values:
    """Values of the reference by key, which remembers those that were read."""

    def __init__(self, values: Mapping[str, Any]):
        self.values, self.read = dict(values), set[str]()

    def get(self, key: str, default: Any, kinds: type | tuple[type, ...]) -> Any:
        """Return a value of one of some types; the default where it is missing or null."""
        self.read.add(key)
        value = self.values.get(key)
        if value is None:
            return default
        if kinds is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        fits = isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
        if not fits:
            names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise ConfigError(f"{key}: expected {names}, found {value!r}")
        return value


_NUMBER = (int, float)


def convert(tree: Tree, processes: int = 8) -> Converted:
    """Return our keys for a configuration of the reference.

    Args:
      tree: Result of `reference_config.merge`.
      processes: Number of the reference's processes, one per GPU.

    Raises:
      ConfigError: For unknown keys, and values that are not supported.
    """
    found = flatten(tree)
    kind = found.get(f"{MODEL}training_head_type")
    if kind not in HEADS:
        raise ConfigError(f"{MODEL}training_head_type: expected one of {', '.join(HEADS)}, found {kind!r}")
    head = HEADS[kind]
    section = f"task_attributes.univl_task.dataset_attributes.{DATASETS[head]}."
    values = _Values({key.replace(section, DATA, 1) if key.startswith(section) else key: found[key] for key in found})
    values.read.add(f"{MODEL}training_head_type")
    notes: list[str] = []
    keys: dict[str, Any] = {"head": head}
    network = _network(values, head, keys)
    _frames(values, network, keys, notes)
    _texts(values, head, keys)
    _losses(values, head, keys)
    _training(values, head, processes, keys, notes)
    _optimizer(values, head, keys)
    ignored = _check_rest(values)
    splits = {"val": "val"} if head == "pretraining" else {"val": "val", "test": "test"}
    return Converted(keys, network, {name: (EVALUATORS[head], split) for name, split in splits.items()}, ignored, notes)


def _network(values: _Values, head: str, keys: dict[str, Any]) -> str:
    kind = values.get(f"{MODEL}image_encoder.type", "", str)
    if kind not in NETWORKS:
        raise ConfigError(f"{MODEL}image_encoder.type: expected one of {', '.join(NETWORKS)}, found {kind!r}")
    remat = values.get(f"{MODEL}image_encoder.params.gradient_checkpointing", [], (list, bool))
    remat = any(remat) if isinstance(remat, list) else remat
    keys["model.remat"] = values.get(f"{MODEL}text_encoder.params.gradient_checkpointing", False, bool) or remat
    keys["model.layers"] = values.get(f"{MODEL}text_encoder.params.num_hidden_layers", 12, int)
    keys["text.vocabulary_size"] = values.get(f"{MODEL}text_encoder.params.vocab_size", 30522, int)
    keys["model.features"] = values.get(f"{MODEL}hidden_size", 768, int)
    width = values.get(f"{MODEL}text_encoder.params.hidden_size", keys["model.features"], int)
    if width != keys["model.features"]:
        raise ConfigError(f"{MODEL}text_encoder.params.hidden_size: expected hidden_size = {keys['model.features']}")
    keys["init_from"] = _sources(values, NETWORKS[kind])
    keys["init_fresh"] = FRESH[head] if keys["init_from"] else ()
    labels = values.get(f"{MODEL}num_labels", 1500, int)
    if head == "question_answering":
        keys["model.num_answers"] = labels
    return NETWORKS[kind]


def _sources(values: _Values, network: str) -> tuple[str, ...]:
    """Return the weights that a run starts from if it continues no other one."""
    read = values.get(f"{MODEL}text_encoder.params.pretrained", False, bool)
    found = ["released:bert_base_uncased"] * read
    path = values.get(f"{MODEL}image_encoder.params.model_path", "", str)
    if values.get(f"{MODEL}image_encoder.params.pretrained", False, bool) or path:
        found.append(path or f"released:{BACKBONES[network]}")
    return tuple(found)


def _frames(values: _Values, network: str, keys: dict[str, Any], notes: list[str]) -> None:
    clips = values.get(f"{DATA}train_ensemble_n_clips", 1, int)
    keys["frames.clips"] = clips
    keys["frames.frames_per_clip"] = values.get(f"{DATA}num_frm", 1, int)
    spellings = [f"{DATA}{name}" for name in ("test_ensembel_n_clips", "test_ensemble_n_clips")]
    tested = [value for value in (values.get(key, 0, int) for key in spellings) if value]
    if tested and tested[-1] != clips:
        notes.append(
            f"evaluation has {tested[-1]} clips, training {clips}: evaluate with --config.frames.clips={tested[-1]}"
        )
    kinds = [values.get(f"{place}type", "custom_transforms", str) for place in (_TRAIN, _TEST)]
    crop = values.get(f"{_TRAIN}params.crop_size", 224, int)
    if set(kinds) == {"pyvideo_transform"}:
        keys["frames.form"], keys["frames.size"] = "crop", crop
        values.read |= {f"{place}params.transforms" for place in (_TRAIN, _TEST)}
        return
    if set(kinds) != {"custom_transforms"}:
        raise ConfigError(f"{_TRAIN}type: expected custom_transforms or pyvideo_transform for both, found {kinds}")
    scales = [_scale(values, place) for place in (_TRAIN, _TEST)]
    (size, random_scale), (tested_size, _) = scales
    keys["frames.form"], keys["frames.max_size"], keys["frames.random_scale"] = "whole", size, random_scale
    keys["frames.heights"] = keys["frames.widths"] = (size,)
    if tested_size != size:
        notes.append(f"evaluation has {tested_size} pixels: evaluate with --config.frames.max_size={tested_size}")


def _scale(values: _Values, place: str) -> tuple[int, bool]:
    key = f"{place}params.transforms"
    found = values.get(key, [], list)
    steps = {step.get("type"): step.get("params", {}) for step in found if isinstance(step, dict)}
    if len(steps) != len(found) or not set(steps) <= {"ImageLongsideScaleAndPad", "GroupNormalize"}:
        raise ConfigError(f"{key}: expected ImageLongsideScaleAndPad and GroupNormalize, found {list(steps)}")
    scale, norm = steps.get("ImageLongsideScaleAndPad", {}), steps.get("GroupNormalize", {})
    wanted = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    if norm and norm != wanted:
        raise ConfigError(f"{key}: GroupNormalize: expected {wanted}, found {norm}")
    size = scale.get("max_size")
    if not isinstance(size, int) or scale.get("pad", False) is not False:
        raise ConfigError(f"{key}: ImageLongsideScaleAndPad: expected a number as max_size and no pad, found {scale}")
    return size, bool(scale.get("random_scale", False))


def _texts(values: _Values, head: str, keys: dict[str, Any]) -> None:
    keys["text.length"] = values.get(f"{_CAPTIONS}params.max_seq_length", 30, int)
    wanted = 0.15 if head == "pretraining" else 0
    probability = values.get(f"{_CAPTIONS}params.mask_probability", wanted, _NUMBER)
    if probability != wanted:
        raise ConfigError(f"{_CAPTIONS}params.mask_probability: only {wanted} is supported here, found {probability}")
    masking = values.get(f"{_MINED}IW_MLM", False, bool)
    matching = values.get(f"{MODEL}pretraining_heads.Vision_Word_Matching", False, bool)
    stage = values.get(f"{_WORDS}VWM_count_stage", "after", (str, int))
    ranks = [values.get(f"{place}HT_words_count_file_dir", "", str) for place in (_MINED, _WORDS)]
    tops = [values.get(f"{place}words_top_k", 3000, int) for place in (_MINED, _WORDS)]
    groups = values.get(f"{_MINED}vocab_same_lema_dir", "", str)
    chosen = values.get(f"{_WORDS}Word_Chosen_Num", 3, int)
    if head != "pretraining":
        return
    if matching and stage not in ("before", "after", "both"):
        raise ConfigError(f"{_WORDS}VWM_count_stage: expected before, after or both, found {stage!r}")
    if masking and matching and (len(set(ranks)) > 1 or len(set(tops)) > 1):
        raise ConfigError(f"{_WORDS}*: masking and matching need the same words here, found {ranks} and {tops}")
    keys["words.masking"], keys["words.matching"], keys["words.chosen"] = masking, stage if matching else "", chosen
    if masking or matching:
        keys["words.ranks"], keys["words.top"] = ranks[not masking], tops[not masking]
    if masking:
        keys["words.groups"] = groups


def _losses(values: _Values, head: str, keys: dict[str, Any]) -> None:
    keys["momentum.enabled"] = values.get(f"{MODEL}with_moco", True, bool) and head in ("pretraining", "retrieval")
    for name, ours in (("M", "decay"), ("T", "temperature"), ("K", "text_queue")):
        if f"{MODEL}{name}" in values.values:
            keys[f"momentum.{ours}"] = values.get(f"{MODEL}{name}", 0, _NUMBER)
    mining = values.get(f"{MODEL}hard_example_mining", False, bool)
    method = values.get(f"{MODEL}re_sample_method", "nearliest", str)
    weighting = values.get(f"{MODEL}re_weight_method", "None", str)
    if not mining:
        return
    if method not in ("top_k", "nearliest") or weighting not in ("median", "None"):
        raise ConfigError(f"{MODEL}re_sample_method, re_weight_method: {method!r}, {weighting!r} are not supported")
    keys["loss.hard_mining"], keys["loss.reweight"] = method, weighting == "median"


def _training(values: _Values, head: str, processes: int, keys: dict[str, Any], notes: list[str]) -> None:
    def of(name: str, default: Any, kinds: Any) -> Any:
        return values.get(f"{TRAINING}{name}", default, kinds)

    keys["batch_size"], keys["batch_groups"] = of("batch_size", 512, int), processes
    keys["data.streams"] = processes
    if keys["batch_size"] % processes:
        raise ConfigError(
            f"{TRAINING}batch_size: {keys['batch_size']} cannot be divided over {processes} processes; give --gpus"
        )
    keys["evaluate.batch_size"] = of("test_batch_size", keys["batch_size"], int)
    steps, epochs = of("max_iterations", math.inf, _NUMBER), of("max_epochs", 0, int)
    if math.isinf(steps) and not epochs:
        raise ConfigError(f"{TRAINING}max_iterations, max_epochs: expected one of them, found none")
    keys["steps"], keys["epochs"] = (0, epochs) if math.isinf(steps) else (int(steps), 0)
    if keys["steps"] and epochs:
        notes.append(f"the run has {keys['steps']} steps; the limit of {epochs} epochs is left out, choose one of them")
    if keys["steps"]:
        notes.append("the reference counts every step twice, so its runs end after half of its max_iterations")
    keys["checkpoint.every_steps"] = keys["evaluate.every_steps"] = of("snapshot_interval", 1000, int)
    keys["checkpoint.keep"] = of("max_ckpt_num", 10, int)
    keys["log_every"] = of("log_interval", 100, int)
    seed = of("seed", 1, int)
    keys["seed"] = seed if seed >= 0 else 1
    keys["model.dtype"] = "bfloat16" if of("enable_amp", False, bool) else "float32"
    metric, lowest = of("monitored_metric", "total_loss", str), of("metric_minimize", True, bool)
    keys["checkpoint.keep_best"] = 1
    keys["checkpoint.best_metric"] = metric if metric.startswith("val/") else f"val/{metric}"
    keys["checkpoint.best_is_lowest"] = lowest and metric != "accuracy"
    resumed = of("resume_file", "", str)
    if resumed:
        keys["init_from"] = (resumed,)
        keys["init_fresh"] = ("^classifier/",) if head == "question_answering" else ()
    elif not keys["init_from"]:
        notes.append("the run starts from random weights: give training_parameters.resume_file or config.init_from")


def _optimizer(values: _Values, head: str, keys: dict[str, Any]) -> None:
    def of(name: str, default: Any, kinds: Any = _NUMBER) -> Any:
        return values.get(f"{TRAINING}{name}", default, kinds)

    place = "optimizer_attributes.params."
    keys["schedule.learning_rate"] = values.get(f"{place}lr", 1e-3, _NUMBER)
    betas = values.get(f"{place}betas", [0.9, 0.999], list)
    if len(betas) != 2:
        raise ConfigError(f"{place}betas: expected two numbers, found {betas}")
    keys["optimizer.b1"], keys["optimizer.b2"] = betas
    keys["optimizer.epsilon"] = values.get(f"{place}eps", 1e-8, _NUMBER)
    decay = keys["optimizer.weight_decay"] = values.get(f"{place}weight_decay", 1e-2, _NUMBER)
    clipped, norm = of("clip_gradients", False, bool), of("max_grad_l2_norm", 0.0)
    keys["optimizer.clip_norm"] = float(norm) if clipped else 0.0
    factor = values.get(f"{MODEL}encoder_lr_decay", 1.0, _NUMBER)
    if factor != 1 and head in ("retrieval", "multiple_choice"):
        keys["optimizer.groups"] = encoder_groups(factor, decay)
    steps, epochs = of("lr_steps", [], list), of("lr_epochs", [], list)
    ratio, scheduled = of("lr_ratio", 0.1), of("lr_scheduler", False, bool)
    warmup, start, length = of("use_warmup", False, bool), of("warmup_factor", 0.2), of("warmup_iterations", 1000, int)
    keys["schedule.name"], keys["schedule.decay_factor"] = "multistep", ratio
    keys["schedule.boundary_steps"] = tuple(steps) if scheduled and not epochs else ()
    keys["schedule.boundary_epochs"] = tuple(epochs) if scheduled else ()
    keys["schedule.warmup_steps"] = length if scheduled and warmup else 0
    keys["schedule.warmup_start"] = start


def encoder_groups(factor: float, decay: float) -> tuple[tuple[str, float, float], ...]:
    """Return the optimiser's groups with another learning rate for the encoders (`encoder_lr_decay`)."""
    encoders = "^(visual|bert(?!/cross_pooler))/"
    return (
        (f"{encoders}.*bias", factor, 0.0),
        ("^bert/.*norm/scale", factor, 0.0),
        (encoders, factor, decay),
        *NO_DECAY,
    )


def _check_rest(values: _Values) -> list[str]:
    """Check the keys that were not read, and return those that are ignored and differ from the defaults."""
    ignored, unknown = [], []
    defaults = flatten({"training_parameters": yaml.safe_load(DEFAULTS)})
    for key, value in values.values.items():
        if key in values.read:
            continue
        if key in FIXED:
            if value not in FIXED[key]:
                raise ConfigError(f"{key}: only {FIXED[key][0]!r} is supported, found {value!r}")
        elif any(fnmatch.fnmatchcase(key, pattern) for pattern in IGNORED):
            ignored += [key] * (key not in defaults or value != defaults[key])
        else:
            unknown.append(key)
    if unknown:
        raise ConfigError(f"unknown keys: {', '.join(unknown)}")
    return ignored

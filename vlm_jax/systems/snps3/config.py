"""Config of SNP-S3 with the published sizes (alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp)."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import base_config
from vlm_jax.systems.snps3 import answers
from vlm_jax.text import vocabulary
from vlm_jax.text.word_pieces import BERT_IDS

HEADS = ("pretraining", "retrieval", "question_answering", "multiple_choice")
"""What a model is trained for, `config.head`."""
VISUAL = {
    "swin": {
        "features": 96,
        "depths": (2, 2, 18, 2),
        "heads": (3, 6, 12, 24),
        "window": (8, 7, 7),
        "drop_path": 0.2,
    },
    "pvt": {
        "widths": (64, 128, 320, 512),
        "depths": (3, 4, 6, 3),
        "heads": (1, 2, 5, 8),
        "ratios": (8, 8, 4, 4),
        "reductions": (8, 4, 2, 1),
    },
    "resnet": {"blocks": (3, 4, 6, 3), "width": 1.0},
}
"""Sizes of the visual networks by name: fields of `VideoSwin`, `PyramidTransformer` and `ResNet`."""

DESCRIBED = ("text.vocabulary_size", "text.special", "model.num_answers")
"""Keys that the vocabularies decide; evaluation and prediction take them from the run."""
CARRIED = ("text.vocabulary", "answers.vocabulary")
"""Keys of files that a run carries along."""
MAY_CHANGE = ("evaluation", "data.directories", "data.workers")
"""Keys that may differ when a run is resumed: evaluation, workers and paths of data."""


def describe(config: ConfigDict) -> dict[str, Any]:
    """Return the values of config keys that the vocabularies of words and of answers state about themselves."""
    found: dict[str, Any] = {}
    if config.text.vocabulary and Path(config.text.vocabulary).exists():
        tokenizer = vocabulary.load(config.text.vocabulary)
        found["text.vocabulary_size"] = tokenizer.vocabulary_size
        found["text.special"] = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    if config.answers.vocabulary and Path(config.answers.vocabulary).exists():
        found["model.num_answers"] = len(answers.read(Path(config.answers.vocabulary)))
    return found


def visual_network(name: str, **sizes: Any) -> ConfigDict:
    """Return `config.model.visual` for the network of a name, with some sizes changed."""
    return ConfigDict({"name": name, **VISUAL[name], **sizes})


def default_config() -> ConfigDict:
    """Return the configuration of pre-training with Video Swin, not locked."""
    config = base_config()
    config.task = "snps3"
    config.head = "pretraining"
    # If true, the slips of the reference are reproduced (docs/snps3.md); else they are repaired.
    config.strict = False
    config.batch_size, config.batch_groups = 128, 8
    # Number of options of a multiple-choice question; others are left empty.
    config.data.options = 5
    # Prepared data sets, which are mixed by `weights` (small integers), or concatenated without weights.
    config.data.directories, config.data.weights = (), ()
    config.data.split = "train"
    # Number of streams that supply consecutive parts of every batch, and of examples that are permuted together.
    config.data.streams, config.data.block = 8, 256
    # Number of examples decoded at the same time; 0 lets tf.data choose.
    config.data.workers = 0
    config.frames = ConfigDict(
        {
            # Clips per video, C, and frames per clip, F. An image is one frame repeated.
            "clips": 4,
            "frames_per_clip": 1,
            # 'crop' shows a square of `size` pixels (Video Swin); 'whole' shows all of the frame, whose longer side
            # has `max_size` pixels, with padding (PVT, ResNet).
            "form": "crop",
            # Crop: shorter side in pixels before the crop (range in training, value in evaluation), probability of
            # mirroring, and RandAugment (magnitude, its deviation, operations per video, probability of each).
            "size": 224,
            "short_side": (268, 336),
            "evaluation_short_side": 268,
            "flip": 0.5,
            "augment": {"operations": 2, "magnitude": 9.0, "deviation": 0.5, "probability": 0.5},
            # Whole: longer side in pixels; if `random_scale`, training draws it from multiples of 32 from 224 on.
            "max_size": 768,
            "random_scale": True,
            # Largest height and width of a training batch, pixels; others are rounded up to the next of these.
            "heights": (768,),
            "widths": (768,),
        }
    )
    config.text = ConfigDict(
        {
            # WordPiece list (vocab.txt) or sentencepiece model (.model), its size, and tokens per text, L.
            "vocabulary": "",
            "vocabulary_size": 30522,
            # Ids of padding, CLS, SEP and the mask token; the vocabulary states them.
            "special": BERT_IDS,
            "length": 30,
        }
    )
    config.words = ConfigDict(
        {
            # JSON of ranks and of lemma groups by token (python -m data_prep.snps3 words); '' masks all words alike.
            "ranks": "",
            "groups": "",
            # Ranks up to this one are significant words.
            "top": 3000,
            # If true, significant words are masked (MSSM); else any word.
            "masking": True,
            # Local matching of clips and words (LVWM): words per caption, and where their vectors are taken, 'after' or
            # 'before' the text encoder, or 'both'; '' leaves this loss out.
            "chosen": 3,
            "matching": "after",
        }
    )
    # Vocabulary of answers: JSON list whose index is the label.
    config.answers = ConfigDict({"vocabulary": ""})
    config.model = ConfigDict(
        {
            "visual": {"name": "swin", **VISUAL["swin"]},
            # BERT, which encodes texts, and texts with clips.
            "features": 768,
            "layers": 12,
            "heads": 12,
            "hidden": 3072,
            "positions": 512,
            "dropout": 0.1,
            "num_answers": 1500,
            # If true, blocks of the visual network and layers of BERT are computed again in the backward pass.
            "remat": False,
            "dtype": "float32",
        }
    )
    config.momentum = ConfigDict(
        {
            # Key encoders and queues of level 1; without them, level 1 is the loss within the batch.
            "enabled": True,
            "decay": 0.9999,
            "temperature": 0.05,
            "text_queue": 16384,
            "clip_queue": 16384,
        }
    )
    config.loss = ConfigDict(
        {
            # If true, half of the groups mask what the text encoder attends to, instead of the data's choice.
            "attentive_masking": True,
            # Level 2 with negatives that level 1 chooses: '' (all of the group), 'top_k' or 'nearliest' (spelled so).
            # With `reweight`, level 1 also weights the texts.
            "hard_mining": "",
            "reweight": False,
        }
    )
    config.optimizer.name = "adamw"
    config.optimizer.b1, config.optimizer.b2, config.optimizer.epsilon = 0.9, 0.98, 1e-8
    config.optimizer.weight_decay, config.optimizer.clip_norm = 1e-3, 5.0
    config.optimizer.groups = NO_DECAY
    config.schedule.name = "multistep"
    config.schedule.learning_rate = 5e-5
    config.schedule.warmup_steps, config.schedule.warmup_start = 2000, 0.1
    config.schedule.boundary_steps, config.schedule.decay_factor = (110000,), 0.1
    config.checkpoint.every_steps, config.checkpoint.keep = 5000, 10
    config.evaluate.every_steps, config.evaluate.batch_size = 5000, 8
    # Evaluators by name. `kind` is 'loss', 'retrieval', 'answers' or 'choices'. Level 2 of retrieval compares
    # `row_block` texts with `column_block` videos at a time; `level_2` = False leaves it out, for a quick look.
    config.evaluation = ConfigDict({})
    return config


NO_DECAY = (("bias", 1.0, 0.0), ("bert/.*norm/scale|head/norm/scale", 1.0, 0.0))
"""Groups of the optimiser without weight decay: biases, also those by position, and the norms of BERT."""


def evaluator(kind: str, directory: str, split: str = "test") -> dict[str, Any]:
    """Return an entry of `config.evaluation`."""
    blocks = {"row_block": 8, "column_block": 64}
    return {"kind": kind, "directory": directory, "split": split, "level_2": True, **blocks}


def smoke(config: ConfigDict) -> None:
    """Change a config to a few steps of a small model on synthetic batches."""
    config.batch_size, config.batch_groups, config.data.streams = 4, 1, 1
    config.data.synthetic, config.data.options = True, 10
    config.epochs, config.steps, config.log_every = 0, 3, 1
    config.frames.form, config.frames.size, config.frames.clips = "crop", 32, 2
    config.text.vocabulary, config.text.vocabulary_size, config.text.length = "", 200, 12
    config.model.update({"features": 64, "layers": 1, "heads": 2, "hidden": 128, "num_answers": 20})
    config.model.remat, config.model.dtype = False, "float32"
    config.model.visual = visual_network("swin", features=32, depths=(1, 1), heads=(1, 2))
    config.words.ranks, config.words.groups, config.answers.vocabulary = "", "", ""
    config.momentum.text_queue, config.momentum.clip_queue = 16, 16
    config.init_from, config.init_fresh = (), ()
    config.schedule.warmup_steps, config.schedule.boundary_steps = 0, ()
    config.checkpoint.every_steps, config.checkpoint.keep = 2, 10
    config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
    config.evaluation, config.evaluate.names = ConfigDict({}), ()
    config.evaluate.every_steps = 0


def whole_frames(config: ConfigDict, network: str, max_size: int) -> None:
    """Change a config to PVT or ResNet on whole frames, whose longer side has at most `max_size` pixels."""
    config.model.visual = visual_network(network)
    config.model.remat = network == "pvt"
    config.frames.form, config.frames.max_size = "whole", max_size
    config.frames.heights = config.frames.widths = (max_size,)


def fine_tune(config: ConfigDict, network: str, data: str) -> None:
    """Change a config to the published fine-tuning of a pre-trained model.

    Args:
      config: Config to change.
      network: 'pvt' or 'resnet'; Video Swin for any other word.
      data: Folder of the prepared data.
    """
    config.batch_size = 32
    config.data.directories = (data,)
    config.frames.clips = 16
    config.text.vocabulary = "data/snps3/vocab.txt"
    config.init_from = ("runs/snps3_pretrain_webvid",)
    if network in ("pvt", "resnet"):
        whole_frames(config, network, 448)
        config.init_from = (f"runs/snps3_pretrain_coco_vg{'_resnet' * (network == 'resnet')}",)
    config.optimizer.weight_decay = 1e-4
    config.schedule.learning_rate, config.schedule.boundary_steps = 1e-5, (15000,)
    config.schedule.warmup_steps = 0
    config.steps, config.checkpoint.every_steps, config.evaluate.every_steps = 25000, 2500, 2500

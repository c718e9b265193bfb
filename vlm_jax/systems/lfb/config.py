"""Config of long-term feature banks with the published sizes and recipe (open-mmlab/mmaction2, detection/lfb)."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import base_config
from vlm_jax.data.protocol import find_protocol
from vlm_jax.systems.lfb.bank import Bank

DESCRIBED = ("data.actions", "data.num_classes", "bank.source", "bank.dtype", "model.bank_dim")
"""Keys that the training data and the bank decide; evaluation and prediction take them from the run."""

MAY_CHANGE = ("detection", "bank.folders", "data.directory", "data.workers", "bank.source.checkpoint")
"""Keys that may differ when a run is resumed: evaluation, workers and paths of data."""


def describe(config: ConfigDict) -> dict[str, Any]:
    """Return the values of config keys that the training data and the bank state about themselves."""
    found: dict[str, Any] = {}
    if keyframes := find_protocol(config.data.directory):
        found |= {"data.actions": keyframes["actions"], "data.num_classes": keyframes["num_classes"]}
    if folders := [folder for folder in config.bank.folders if Path(folder).is_dir()]:
        bank = Bank.open(folders)
        found |= {"bank.source": dict(bank.source), "bank.dtype": bank.dtype.name, "model.bank_dim": bank.dim}
    return found


def default_config() -> ConfigDict:
    """Return the published configuration of a model with a bank, not locked."""
    config = base_config()
    config.task = "lfb"
    config.batch_size, config.batch_groups = 96, 8
    config.epochs = 20
    config.data.directory = "data/ava"
    config.data.split = "train"
    # Number of streams that supply consecutive parts of every batch, and of keyframes that are permuted together.
    config.data.streams, config.data.block = 8, 1 << 15
    # Number of examples decoded at the same time; 0 lets tf.data choose.
    config.data.workers = 0
    # Smallest score of a proposal in training. A keyframe's best proposal is always kept.
    config.data.proposal_threshold = 0.9
    # Numbers of boxes, and of bank rows, that a clip is padded to; each pair is compiled once.
    config.data.box_buckets = (4, 8, 16, 32)
    config.data.bank_buckets = (300, 600, 1200, 2400)
    # Names by action id, and number of columns of the classifier; the data state both.
    config.data.actions, config.data.num_classes = ConfigDict({}), 81
    config.clips = ConfigDict(
        {
            # Frames per clip, and from one to the next, at `fps` frames per second; the keyframe is frame T // 2 + 1.
            "num_frames": 4,
            "interval": 16,
            "fps": 30,
            # Largest shift of a frame in training, drawn for each frame from [-jitter, jitter).
            "jitter": 8,
            # Frames by which all indices are later: mmaction2 1.x adds the index of the first frame twice.
            "frame_shift": 1,
            # Shorter side in pixels: range in training, and value in evaluation; size of the crop in training.
            "short_side": (256, 320),
            "size": 256,
            "evaluation_short_side": 256,
            "flip": 0.5,
        }
    )
    config.targets = ConfigDict({"positive_iou": 0.9, "negative_iou": 0.9, "minimal_iou": 0.9, "max_boxes": 32})
    config.bank = ConfigDict(
        {
            # Folders of banks; a video that is in several of them is read from the last one.
            "folders": (),
            # Seconds around the keyframe, and features per second.
            "window": 60,
            "per_second": 5,
            # Type of features on disk and in batches, 'float16' or 'float32'.
            "dtype": "float16",
            # If true, evaluation draws features at random, as the reference does; else it takes the first ones.
            "random_in_evaluation": False,
            # Checkpoint, fingerprint and settings of the model that made the bank; the bank states them.
            "source": {},
        }
    )
    config.model = ConfigDict(
        {
            "width": 1.0,
            "blocks": (3, 4, 6, 3),
            # Operator over the bank: 'none', 'non_local', 'avg' or 'max'.
            "operator": "non_local",
            "bank_dim": 2048,
            "latent_dim": 512,
            "non_local_layers": 2,
            "pre_activate": True,
            "pre_activate_with_norm": True,
            "use_scale": True,
            "zero_init_out": False,
            "bank_dropout": 0.2,
            # Features of boxes: cells per side; 'avg', 'max' or 'none' over frames; the whole clip's map beside them.
            "roi_size": 8,
            "roi_aligned": True,
            "roi_samples": 0,
            "roi_time_pool": "avg",
            "with_global": False,
            # Classifier.
            "dropout": 0.5,
            "dropout_before_pool": True,
            "time_pool": "avg",
            "space_pool": "max",
            "mlp_head": False,
            "background_class": True,
            "dtype": "float32",
        }
    )
    # If `multilabel` is false, every box has one action and the loss is a softmax cross-entropy.
    config.loss = ConfigDict({"multilabel": True, "focal_alpha": 1.0, "focal_gamma": 0.0, "top_k": (3, 5)})
    config.optimizer.name = "sgd"
    config.optimizer.momentum, config.optimizer.weight_decay, config.optimizer.clip_norm = 0.9, 1e-5, 20.0
    config.schedule.name = "multistep"
    config.schedule.learning_rate = 0.15
    config.schedule.warmup_epochs, config.schedule.warmup_start, config.schedule.warmup_inclusive = 5, 0.1, True
    config.schedule.boundary_epochs, config.schedule.decay_factor = (10, 15), 0.1
    config.checkpoint.every_epochs, config.checkpoint.keep = 3, 3
    # Evaluators by name, for results and for banks.
    config.detection = ConfigDict({})
    return config

"""SlowOnly-R50 on AVA without a bank; it makes the banks of the other configs. Variants:

(default)  as mmaction2 1.x: 20.72 frame mAP on AVA v2.1 validation, 60 classes
v0         as mmaction2 0.x: 20.1
smoke      a few steps of a small model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.systems.lfb.config import default_config

VARIANTS = ("v0", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.batch_size, config.batch_groups, config.data.streams = 128, 8, 8
    config.model.operator = "none"
    config.schedule.learning_rate, config.schedule.reference_batch_size = 0.2, 128
    config.schedule.warmup_by_epoch = True
    config.optimizer.clip_norm = 40.0
    config.init_from = ("released:slowonly_kinetics",)
    config.init_fresh = ("^classifier/",)
    config.checkpoint.every_epochs = 1
    config.detection = ConfigDict({"val": evaluator(proposal_threshold=0.9, action_threshold=0.002)})
    return with_variant(config, variant)


def evaluator(**settings: object) -> dict[str, object]:
    """Return the settings of an evaluation on AVA's validation set, with some of them replaced."""
    return {
        "directory": "data/ava",
        "split": "val",
        # Smallest score of a proposal that counts as a person; a keyframe's best proposal is always kept.
        "proposal_threshold": 0.85,
        # Smallest score of an action that is reported; below 0, every box has its one best action.
        "action_threshold": 0.0,
        # 'reference' computes the metric as mmaction2 does, 'official' as ActivityNet's tool.
        "mode": "reference",
        # If true, the features of all boxes are written into a bank beside the results.
        "write_bank": False,
        **settings,
    }


def with_variant(config: ConfigDict, variant: str) -> ConfigDict:
    """Return a config of lfb with the checkpoints of training, changed for a variant."""
    config.evaluate.names, config.evaluate.every_epochs = ("val",), 1
    config.checkpoint.keep_best, config.checkpoint.best_metric = 1, "val/mAP"
    if variant == "v0":
        # Frames one earlier, the same proposals in training and evaluation, another warm-up and limit of gradients.
        # Excluded keyframes are evaluated: data/ava_v0 is prepared with --keep_excluded.
        config.clips.frame_shift = 0
        config.optimizer.clip_norm = 40.0
        config.schedule.warmup_inclusive = config.schedule.warmup_by_epoch = False
        config.init_from = ("released:slowonly_kinetics_v0",)
        for name in config.detection:
            config.detection[name].directory = "data/ava_v0"
            config.detection[name].proposal_threshold = 0.9
    elif variant == "smoke":
        config.batch_size, config.batch_groups, config.data.streams = 4, 2, 1
        config.epochs, config.steps, config.log_every = 0, 6, 1
        config.data.synthetic = True
        config.data.box_buckets, config.data.bank_buckets, config.targets.max_boxes = (4,), (12,), 4
        config.clips.size = 32
        config.model.width, config.model.blocks = 0.125, (1, 1, 1, 1)
        config.model.bank_dim, config.model.latent_dim = 32, 16
        config.bank.window, config.bank.per_second = 4, 3
        config.schedule.warmup_epochs, config.schedule.warmup_steps, config.schedule.reference_batch_size = 0, 2, 0
        config.schedule.boundary_epochs, config.schedule.learning_rate = (), 0.02
        config.schedule.warmup_by_epoch = False
        config.init_from, config.init_fresh = (), ()
        config.checkpoint.every_steps, config.checkpoint.every_epochs = 3, 0
        config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
        config.evaluate.every_epochs, config.evaluate.names = 0, ()
        config.detection = ConfigDict({})
    return config

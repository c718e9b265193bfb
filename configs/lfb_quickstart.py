"""Long-term feature banks on the packaged Chaplin clip: the whole chain in minutes on a laptop's CPU. Variants:

(default)  baseline: a small detector without a bank, which makes the bank
nl         non-local operator over that bank
smoke      a few steps of a smaller model on synthetic batches

Training and evaluation have the same nine keyframes, so the numbers only show that the chain works.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("nl", "smoke")
DATA = "runs/data/chaplin"
BASELINE = "runs/quickstart-lfb-baseline"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "lfb_baseline.py", "smoke" if variant == "smoke" else "")
    if variant == "smoke":
        return config
    config.data.directory = DATA
    config.batch_size, config.batch_groups, config.data.streams = 8, 1, 1
    # The film lasts 9.6 seconds and shows one or two people; a window reaches over all of it.
    config.data.box_buckets, config.data.bank_buckets, config.targets.max_boxes = (4,), (32,), 4
    config.bank.window, config.bank.per_second = 20, 3
    config.clips.short_side, config.clips.size, config.clips.evaluation_short_side = (96, 112), 96, 96
    config.model.width, config.model.blocks = 0.25, (1, 1, 1, 1)
    config.model.bank_dim, config.model.latent_dim = 512, 64
    config.optimizer.name, config.optimizer.weight_decay, config.optimizer.clip_norm = "adamw", 1e-4, 10.0
    config.schedule.name, config.schedule.learning_rate, config.schedule.reference_batch_size = "cosine", 1e-3, 0
    config.schedule.warmup_by_epoch, config.schedule.warmup_epochs, config.schedule.warmup_steps = False, 0, 20
    config.schedule.boundary_epochs = ()
    config.epochs, config.steps, config.log_every = 0, 200, 50
    config.checkpoint.every_epochs, config.checkpoint.every_steps, config.checkpoint.keep = 0, 100, 1
    config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
    config.evaluate.at_start, config.evaluate.every_epochs, config.evaluate.batch_size = True, 0, 8
    # Boxes are those of OpenCV's people detector; all of them count.
    everyone = {"directory": DATA, "proposal_threshold": 0.0, "action_threshold": 0.0}
    config.detection = ConfigDict({"val": config.detection.val.to_dict() | everyone})
    config.init_from, config.init_fresh = (), ()
    if variant == "nl":
        config.model.operator = "non_local"
        config.steps, config.checkpoint.every_steps = 100, 50
        # The backbone begins where the baseline's ended.
        config.init_from, config.init_fresh = (BASELINE,), ("^classifier/", "^fbo/")
        config.bank.folders = (f"{BASELINE}/results/bank",)
    else:
        config.detection.bank = config.detection.val.to_dict() | {"split": "train", "write_bank": True}
    return config

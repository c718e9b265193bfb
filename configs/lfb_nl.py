"""SlowOnly-R50 on AVA over a feature bank, with a non-local operator of two layers. Variants:

(default)  as mmaction2 1.x: 24.11 frame mAP on AVA v2.1 validation, 60 classes
v0         as mmaction2 0.x, which published the same number
smoke      a few steps of a small model on synthetic batches

`config.bank.folders` are made by a trained baseline (configs/lfb_bank.py), or converted from the published ones.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("v0", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "lfb_baseline.py", variant)
    config.model.operator = "non_local"
    if variant == "smoke":
        return config
    config.batch_size, config.batch_groups = 96, 8
    config.schedule.learning_rate, config.schedule.reference_batch_size = 0.15, 96
    config.schedule.warmup_by_epoch = False
    config.optimizer.clip_norm = 40.0 if variant == "v0" else 20.0
    config.init_fresh = ("^classifier/", "^fbo/")
    config.checkpoint.every_epochs = 3
    config.bank.folders = ("runs/lfb_baseline/results/bank_train", "runs/lfb_baseline/results/bank_val")
    config.detection.val.action_threshold = 0.0
    if variant != "v0":
        config.detection.val.proposal_threshold = 0.85
    return config

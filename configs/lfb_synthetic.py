"""Long-term feature banks on long-memory films of the synthetic world, a small model. Variants:

(default)  baseline: the detector without a bank, which makes the banks
nl         non-local operator over the bank
max        maximum over the bank
avg        average over the bank
smoke      a few steps of a smaller model on synthetic batches

`bash examples/long_memory.sh` makes the data and gives the folders of the banks.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("nl", "max", "avg", "smoke")
DATA = "runs/data/long_memory"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "lfb_baseline.py", "smoke" if variant == "smoke" else "")
    if variant == "smoke":
        return config
    config.seed = 1
    config.data.directory = DATA
    config.batch_size, config.batch_groups, config.data.streams = 16, 1, 1
    config.data.box_buckets, config.data.bank_buckets, config.targets.max_boxes = (4,), (160,), 4
    # Films have 10 frames per second and 64 x 64 pixels, and last 40 to 52 seconds: a window reaches over all of them.
    config.clips.fps, config.clips.interval, config.clips.jitter = 10, 5, 2
    # Frames are enlarged, because the network's cells have 16 pixels.
    config.clips.short_side, config.clips.size, config.clips.evaluation_short_side = (128, 136), 128, 128
    config.bank.window, config.bank.per_second = 96, 3
    config.model.width, config.model.blocks, config.model.dropout = 0.125, (1, 1, 1, 1), 0.0
    config.model.bank_dim, config.model.latent_dim = 256, 64
    config.optimizer.name, config.optimizer.weight_decay, config.optimizer.clip_norm = "adamw", 1e-4, 10.0
    config.schedule.name, config.schedule.learning_rate, config.schedule.reference_batch_size = "cosine", 3e-3, 0
    config.schedule.warmup_by_epoch, config.schedule.warmup_epochs, config.schedule.warmup_steps = False, 0, 50
    config.schedule.boundary_epochs = ()
    config.epochs, config.steps = 0, 600
    config.checkpoint.every_epochs, config.checkpoint.every_steps, config.checkpoint.keep = 0, 300, 1
    config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
    config.evaluate.every_epochs, config.evaluate.names, config.evaluate.batch_size = 0, (), 16
    # Proposals are the boxes of everyone.
    settings = config.detection.val.to_dict() | {"directory": DATA, "action_threshold": 0.0}
    config.detection = ConfigDict({split: settings | {"split": split} for split in ("val", "test")})
    config.init_from, config.init_fresh = (), ()
    if not variant:
        for split in ("train", "val", "test"):
            config.detection[f"bank_{split}"] = settings | {"split": split, "write_bank": True}
        return config
    config.model.operator = {"nl": "non_local"}.get(variant, variant)
    config.steps, config.schedule.learning_rate = 400, 2e-3
    # The backbone begins where the baseline's ended.
    config.init_from = ("runs/long_memory/baseline-1",)
    config.init_fresh = ("^classifier/", "^fbo/") if variant == "nl" else ("^classifier/",)
    config.bank.folders = tuple(f"{config.init_from[0]}/results/bank_{split}" for split in ("train", "val", "test"))
    return config

"""GroundNLQ from scratch on Ego4D NLQ v2 (houzhijian/GroundNLQ, `ego4d_nlq_v2_egovlp_internvideo_1e-4.yaml`). Variants:

(default)  learning rate 1e-4 (5e-5 on each of 2 GPUs), global batch size 4, 13 epochs on train; evaluated on validation
smoke      a few steps of a small model on synthetic batches

The other configs of this system start from this one.
"""

from ml_collections import ConfigDict

from vlm_jax.systems.groundnlq.config import default_config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    # The best epoch lies in the middle of the run: each is evaluated, and the best checkpoints stay.
    config.checkpoint.keep_best, config.checkpoint.best_metric = 3, "validation/mean_R1"
    config.evaluate.every_epochs, config.evaluate.names = 1, ("validation",)
    config.moments = ConfigDict({"validation": evaluation("validation")})
    if variant == "smoke":
        make_small(config)
    return config


def evaluation(split: str) -> dict[str, object]:
    """Return an entry of `config.moments` for a split of Ego4D NLQ."""
    places = {"features": "data/ego4d/features", "queries": "data/ego4d/queries", "split": split}
    return {**places, "thresholds": (0.3, 0.5), "ks": (1, 5)}


def make_small(config: ConfigDict) -> None:
    """Change a config to a few steps of a small model on synthetic batches."""
    config.epochs, config.steps, config.log_every = 0, 6, 1
    config.batch_size, config.batch_groups = 2, 2
    config.data.synthetic, config.data.buckets = True, (64,)
    config.text.max_tokens = 6
    model = config.model
    model.video_dim, model.text_dim, model.dim, model.head_dim, model.heads = 24, 16, 16, 16, 2
    model.text_blocks, model.stem_blocks, model.max_length = 1, 1, 64
    model.plain_blocks = 2
    model.ranges = ((0, 4), (2, 8), (4, 10000))
    config.schedule.warmup_epochs, config.schedule.warmup_steps = 0, 2
    config.checkpoint.every_epochs, config.checkpoint.every_steps = 0, 3
    config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
    config.evaluate.every_epochs, config.evaluate.names = 0, ()
    config.moments = ConfigDict({})

"""GroundNLQ pre-trained on narrations as if they were questions (NaQ). Variants:

(default)  rate 2e-4 (5e-5 on each of 4 GPUs) at a global batch of 16, 10 epochs; judged on validation questions
smoke      a few steps of a small model on synthetic batches

The authors fine-tune from the sixth epoch.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant."""
    config = sibling(__file__, "groundnlq_scratch.py", variant)
    config.data.queries = "data/ego4d/narrations"
    config.data.jitter = True
    config.schedule.learning_rate = 2e-4
    config.decoding.max_moments = 50
    if variant != "smoke":
        config.batch_size, config.batch_groups = 16, 4
        # 6 epochs after 4 of warm-up; all stay, for the best one to start from is not the last.
        config.epochs, config.schedule.warmup_epochs = 10, 4
        config.checkpoint.keep = 10
        # Narrations are longer than questions; the text encoder takes no more.
        config.text.max_tokens = 75
    return config

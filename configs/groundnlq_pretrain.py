"""GroundNLQ pre-trained on narrations used as questions (NaQ). Variants:

(default)  learning rate 2e-4 (5e-5 on each of 4 GPUs), global batch size 16, 10 epochs; validated on questions
smoke      a few steps of a small model on synthetic batches

The authors fine-tune from the sixth epoch.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "groundnlq_scratch.py", variant)
    config.data.queries = "data/ego4d/narrations"
    config.data.jitter = True
    config.schedule.learning_rate = 2e-4
    config.decoding.max_moments = 50
    if variant != "smoke":
        config.batch_size, config.batch_groups = 16, 4
        # 4 epochs of warm-up, then 6. All checkpoints stay: the best one to fine-tune from is not the last.
        config.epochs, config.schedule.warmup_epochs = 10, 4
        config.checkpoint.keep = 10
        # Narrations are longer than questions; 75 is the limit of the text encoder.
        config.text.max_tokens = 75
    return config

"""GroundNLQ*, whose pyramid attends to the words in every block (36,080,266 parameters).

Variants, each with the settings of the plain model's config:

(default)       from scratch
pretrain        on narrations
finetune        on train, from a pre-trained GroundNLQ*
train_val       the same on train and validation together
test_inference  predictions for the test split
smoke           a few steps of a small model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

FILES = {
    "": ("groundnlq_scratch.py", ""),
    "pretrain": ("groundnlq_pretrain.py", ""),
    "finetune": ("groundnlq_finetune.py", "train"),
    "train_val": ("groundnlq_finetune.py", "train_val"),
    "test_inference": ("groundnlq_finetune.py", "test_inference"),
    "smoke": ("groundnlq_scratch.py", "smoke"),
}
VARIANTS = tuple(FILES)[1:]


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, *FILES[variant])
    config.model.cross_blocks, config.model.plain_blocks = config.model.plain_blocks, 0
    if config.init_from:
        config.init_from = ("checkpoints/groundnlq_star_pretrained",)
    return config

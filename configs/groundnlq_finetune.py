"""GroundNLQ fine-tuned on Ego4D NLQ v2 from a model that was pre-trained on narrations. Variants:

train           (default) rate 2.5e-5 at a global batch of 2, 10 epochs on train, as published validation scores need it
train_val       the same on train and validation together, as the released config files do; for the test set
test_inference  answers the test split, which has no public ground truth, by launch/evaluate.py
smoke           a few steps of a small model on synthetic batches

`config.init_from` takes a checkpoint of the pre-training run, or a converted one; the heads start afresh.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("train", "train_val", "test_inference", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant."""
    smoke = variant == "smoke"
    config = sibling(__file__, "groundnlq_scratch.py", "smoke" if smoke else "")
    config.batch_size, config.batch_groups = 2, 1
    config.schedule.learning_rate = 2.5e-5
    if smoke:
        return config
    config.init_from = ("checkpoints/groundnlq_pretrained",)
    config.init_fresh = (r"^(class|offset)_head/", r"^level_scale_\d+$")
    # 6 epochs after 4 of warm-up.
    config.epochs, config.schedule.warmup_epochs = 10, 4
    if variant == "train_val":
        # Validation scores are those of training examples here, so no epoch is the best one by them: all stay.
        config.data.split = "train+validation"
        config.checkpoint.keep, config.checkpoint.keep_best, config.checkpoint.best_metric = 10, 0, ""
    elif variant == "test_inference":
        config.evaluate.names = ()
        config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
        config.moments = ConfigDict({"test": {**config.moments.validation, "split": "test"}})
    return config

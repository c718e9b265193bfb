"""GroundNLQ fine-tuned on Ego4D NLQ v2 from a model that was pre-trained on narrations. Variants:

train           (default) learning rate 2.5e-5, global batch size 2, 10 epochs on train, as for the published validation
                scores
train_val       the same on train and validation together, as in the released config files; for the test set
test_inference  predictions for the test split, which has no public ground truth, by launch/evaluate.py
smoke           a few steps of a small model on synthetic batches

`config.init_from` takes a checkpoint of the pre-training run, or a converted one; the heads are initialised anew.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("train", "train_val", "test_inference", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    smoke = variant == "smoke"
    config = sibling(__file__, "groundnlq_scratch.py", "smoke" if smoke else "")
    config.batch_size, config.batch_groups = 2, 1
    config.schedule.learning_rate = 2.5e-5
    if smoke:
        return config
    config.init_from = ("checkpoints/groundnlq_pretrained",)
    config.init_fresh = (r"^(class|offset)_head/", r"^level_scale_\d+$")
    # 4 epochs of warm-up, then 6.
    config.epochs, config.schedule.warmup_epochs = 10, 4
    if variant == "train_val":
        # Validation examples are training examples here, so their scores choose no best epoch: all checkpoints stay.
        config.data.split = "train+validation"
        config.checkpoint.keep, config.checkpoint.keep_best, config.checkpoint.best_metric = 10, 0, ""
    elif variant == "test_inference":
        config.evaluate.names = ()
        config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
        config.moments = ConfigDict({"test": {**config.moments.validation, "split": "test"}})
    return config

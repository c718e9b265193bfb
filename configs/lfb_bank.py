"""Feature banks of AVA, made by a trained baseline: launch/evaluate.py --config configs/lfb_bank.py --workdir RUN.

The banks are written into RUN/results/bank_train and RUN/results/bank_val, which `config.bank.folders` of the other
configs names; the baseline's mAP comes with them. Variants:

(default)  training and validation videos, float16, as mmaction2 1.x
test       the test videos, which have no annotations
float32    as the default, in float32
v0         as mmaction2 0.x: frames one earlier
smoke      a few training steps of a small baseline on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("test", "float32", "v0", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "lfb_baseline.py", variant if variant in ("v0", "smoke") else "")
    if variant == "smoke":
        return config
    splits = ("test",) if variant == "test" else ("train", "val")
    validation = config.detection.val.to_dict()
    config.detection = ConfigDict(
        {f"bank_{split}": {**validation, "split": split, "write_bank": True} for split in splits}
    )
    # Excluded keyframes are in no bank.
    for name in config.detection:
        config.detection[name].directory = "data/ava"
    config.evaluate.names, config.checkpoint.keep_best, config.checkpoint.best_metric = (), 0, ""
    config.bank.dtype = "float32" if variant == "float32" else "float16"
    return config

"""SlowOnly-R50 on AVA over a feature bank, with the average of the window. Variants:

(default)  the recipe of mmaction2 1.x, which has no config of this operator
v0         as mmaction2 0.x: 20.17 frame mAP on AVA v2.1 validation
smoke      a few steps of a small model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("v0", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "lfb_nl.py", variant)
    config.model.operator = "avg"
    if variant != "smoke":
        config.init_fresh = ("^classifier/",)
    return config

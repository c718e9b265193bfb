"""SlowOnly-R50 on AVA over a feature bank, with the maximum of the window. Variants:

(default)  as mmaction2 1.x: 22.15 frame mAP on AVA v2.1 validation, 60 classes
v0         as mmaction2 0.x, which published the same number
smoke      a few steps of a small model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("v0", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "lfb_nl.py", variant)
    config.model.operator = "max"
    if variant != "smoke":
        config.init_fresh = ("^classifier/",)
    return config

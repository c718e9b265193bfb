"""SlowOnly, the slow pathway of SlowFast: a 3-D ResNet without temporal strides.

Sources: Feichtenhofer et al. 2019 (SlowFast, table 1); open-mmlab/mmaction2,
mmaction/models/backbones/resnet3d_slowonly.py.
"""

import math

from vlm_jax.models.resnet import ResNet

STRIDES = (1, 2, 2, 1)
"""Spatial strides of the stages for detection; recognition has 2 in the last one, with the same weights."""
STRIDE = 4 * math.prod(STRIDES)
"""Pixels of the input per cell of the last map."""


class SlowOnly(ResNet):
    """SlowOnly-R50 with the strides of detection; the attributes are those of `ResNet`."""

    strides: tuple[int, ...] = STRIDES
    inflated: tuple[bool, ...] = (False, False, True, True)

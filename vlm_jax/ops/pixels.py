"""Conversion of pixels from bytes to numbers."""

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the colours of ImageNet in [0, 1], by which many networks' inputs are standardised."""


def to_unit(video: jax.Array) -> jax.Array:
    """Return uint8 pixels as float32 in [0, 1], each the correctly rounded v / 255.

    For a division, XLA multiplies by the reciprocal, which is off by one unit in the last place for half of the bytes.
    Deep batch-norm networks amplify that to a relative error of 1e-3 in gradients. A table of 256 entries is as fast.
    """
    table = jnp.asarray(np.arange(256, dtype=np.float32) / np.float32(255))
    return table.at[video].get(mode="promise_in_bounds")

"""RoIAlign over the maps of a clip, as matrix products with the weights of rows and columns.

The average of bilinear samples on a grid is separable: a cell's value is a weighted sum over the map's rows and
columns. Products of that form need no gather, and their gradient no scatter.

Sources: He et al. 2017 (Mask R-CNN, section 3); open-mmlab/mmcv, mmcv/ops/csrc/pytorch/cpu/roi_align.cpp.
"""

import jax
import jax.numpy as jnp
from jax import lax


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    *,
    scale: float,
    output_size: int,
    samples: int = 0,
    aligned: bool = True,
    extents: jax.Array | None = None,
    max_samples: int | None = None,
) -> jax.Array:
    """Return the average of bilinear samples in the P x P cells of every box.

    A sample farther than one cell outside of the map counts as 0. A box without width or height gives zeros. The
    gradient flows to the features only.

    Args:
      features: Maps, `[B, T, H, W, C]`.
      boxes: Boxes of every clip as x1, y1, x2, y2 in pixels of the network's input, `[B, N, 4]`.
      scale: Cells of the map per pixel.
      output_size: Number of cells per side of a box, P.
      samples: Number of samples per cell and axis; 0 for the smallest number whose distance is at most one cell of the
        map.
      aligned: If true, pixel centres lie at half-integer coordinates; else boxes are at least one cell wide and high,
        and not shifted (the legacy form).
      extents: Height and width of the map that each clip really has, in cells, int32 `[B, 2]`; what lies beyond is
        never read. None if all of H x W is real.
      max_samples: Upper bound of the number of samples per cell and axis; None for that of boxes that are not longer
        than the map.

    Returns:
      `[B, N, T, P, P, C]` in the type of `features`.
    """
    height, width = features.shape[2:4]
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    if extents is None:
        extents = jnp.broadcast_to(jnp.array([height, width]), (features.shape[0], 2))
    bound = samples or max_samples or -(-max(height, width) // output_size) + 1
    shift = 0.5 if aligned else 0.0

    def weights(axis: int, size: int) -> jax.Array:
        start, end = (boxes[..., side] * scale - shift for side in (axis, axis + 2))
        length = end - start if aligned else jnp.maximum(end - start, 1.0)
        extent = extents[:, 1 - axis, None]
        return _cell_weights(start, length, extent, size, output_size, samples, bound)

    rows = lax.stop_gradient(weights(1, height)).astype(features.dtype)
    columns = lax.stop_gradient(weights(0, width)).astype(features.dtype)
    cells = jnp.einsum("bnph,bthwc->bntpwc", rows, features)
    return jnp.einsum("bnqw,bntpwc->bntpqc", columns, cells)


def _cell_weights(
    start: jax.Array, length: jax.Array, extent: jax.Array, size: int, cells: int, samples: int, bound: int
) -> jax.Array:
    """Return the weight of every position of an axis in every cell: `[B, N, P, size]`.

    Args:
      start: Start of the boxes on this axis, in cells of the map, `[B, N]`.
      length: Length of the boxes, in cells of the map, `[B, N]`.
      extent: Length of the map that is real, `[B, 1]`.
      size: Length of the map.
      cells: Number of cells of a box, P.
      samples: Number of samples per cell, or 0.
      bound: Upper bound of the number of samples per cell.
    """
    step = (length / cells)[..., None, None]
    count = jnp.full_like(step, samples) if samples else jnp.ceil(step)
    cell, sample = jnp.arange(cells)[:, None], jnp.arange(bound)
    place = start[..., None, None] + cell * step + (sample + 0.5) * step / jnp.maximum(count, 1)
    last = extent[..., None, None]
    counted = (sample < count) & (place >= -1) & (place <= last)
    place = jnp.clip(place, 0, last - 1)
    near = jnp.maximum(0.0, 1 - jnp.abs(place[..., None] - jnp.arange(size)))
    return (jnp.where(counted[..., None], near, 0.0) / jnp.maximum(count, 1)[..., None]).sum(-2)

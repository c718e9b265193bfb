"""Action detector over a feature bank: SlowOnly, features of boxes, bank operator, classifier.

Sources: Wu et al. 2019 (Long-Term Feature Banks); open-mmlab/mmaction2, mmaction/models/roi_heads. Submodules carry the
names of the released checkpoints.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.resnet3d import STRIDE, SlowOnly
from vlm_jax.ops.roi_align import roi_align
from vlm_jax.systems.lfb.bank_operators import NonLocalBank, pool_bank

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of the training pixels, RGB."""
POOLS = ("avg", "max")
TIME_POOLS = (*POOLS, "none")


def standardise(video: jax.Array) -> jax.Array:
    """Return uint8 RGB pixels minus their mean, divided by their deviation; in float64 if jax computes in it."""
    wide = jnp.result_type(float)
    return (video.astype(wide) - jnp.array(MEAN, wide)) / jnp.array(DEVIATION, wide)


class RoiExtractor(nn.Module):
    """Features of boxes on the maps of a clip (mmaction/models/roi_heads/roi_extractors/single_straight3d.py).

    Attributes:
      output_size: Number of cells per side of a box, P.
      time_pool: Pooling over frames before RoIAlign, 'avg' or 'max', or 'none' for the maps of all frames.
      with_global: If true, the map of the whole clip, pooled to P x P, is appended to every box's channels.
      aligned: Form of RoIAlign.
      samples: Number of samples per cell and axis of RoIAlign; 0 adapts it to the box.
    """

    output_size: int = 8
    time_pool: str = "avg"
    with_global: bool = False
    aligned: bool = True
    samples: int = 0

    def __call__(self, maps: jax.Array, boxes: jax.Array, extents: jax.Array | None = None) -> jax.Array:
        """Pool the maps `[B, T, H, W, C]` in boxes `[B, N, 4]` (pixels): `[B, N, T', P, P, C']`.

        T' is 1 unless `time_pool` is 'none'; C' is 2C with the global map.

        Args:
          maps: Last maps of the backbone.
          boxes: x1, y1, x2, y2 in pixels of the network's input.
          extents: Height and width of each clip's map, `[B, 2]`; None if nothing is padded.
        """
        if self.time_pool != "none":
            maps = pool(maps, self.time_pool, (1,))[:, None]
        options = {"output_size": self.output_size, "samples": self.samples, "aligned": self.aligned}
        features = roi_align(maps, boxes, scale=1 / STRIDE, extents=extents, **options)
        if self.with_global:
            whole = adaptive_average(maps, self.output_size, extents)
            whole = jnp.broadcast_to(whole[:, None], (*features.shape[:-1], whole.shape[-1]))
            features = jnp.concatenate([features, whole], -1)
        return features


def adaptive_average(maps: jax.Array, size: int, extents: jax.Array | None = None) -> jax.Array:
    """Average maps `[B, T, H, W, C]` in P x P cells that cover them (torch's adaptive pooling): `[B, T, P, P, C]`.

    Args:
      maps: Maps.
      size: Number of cells per side, P.
      extents: Height and width of each clip's map, `[B, 2]`; None if nothing is padded.
    """
    if extents is None:
        extents = jnp.broadcast_to(jnp.array(maps.shape[2:4]), (maps.shape[0], 2))

    def weights(extent: jax.Array, length: int) -> jax.Array:
        cell, place = jnp.arange(size)[:, None], jnp.arange(length)
        extent = extent[:, None, None]
        inside = (place >= cell * extent // size) & (place < -(-(cell + 1) * extent // size))
        return (inside / inside.sum(-1, keepdims=True)).astype(maps.dtype)

    rows, columns = weights(extents[:, 0], maps.shape[2]), weights(extents[:, 1], maps.shape[3])
    return jnp.einsum("bph,bqw,bthwc->btpqc", rows, columns, maps)


def pool(x: jax.Array, how: str, axes: tuple[int, ...]) -> jax.Array:
    """Return the mean ('avg', in at least float32) or maximum ('max') over some axes, in the type of `x`."""
    if how == "max":
        return x.max(axes)
    return x.mean(axes, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


class Classifier(nn.Module):
    """Classifier of boxes with its own pooling (mmaction/models/roi_heads/bbox_heads/bbox_head.py).

    Attributes:
      num_classes: Number of columns, A; column 0 is not used.
      dropout: Dropout rate.
      dropout_before_pool: If true, dropout acts on every cell before pooling; else on the pooled feature.
      time_pool: Pooling over frames, 'avg' or 'max'.
      space_pool: Pooling over cells, 'avg' or 'max'.
      mlp: If true, a layer of the same width with ReLU comes before the last one.
      dtype: Compute type; the last layer computes in at least float32.
    """

    num_classes: int = 81
    dropout: float = 0.5
    dropout_before_pool: bool = True
    time_pool: str = "avg"
    space_pool: str = "max"
    mlp: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        """Classify features `[B, N, T, P, P, C]`: logits `[B, N, A]`, at least float32."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if self.dropout_before_pool:
            features = drop(features)
        x = pool(pool(features, self.time_pool, (2,)), self.space_pool, (2, 3))
        if not self.dropout_before_pool:
            x = drop(x)

        if self.mlp:
            x = nn.relu(_linear(x.shape[-1], self.dtype, "hidden")(x))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return _linear(self.num_classes, jnp.float32, "fc_cls")(x.astype(wide))


def _linear(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """Return a linear layer that starts with Xavier's normal weights, not truncated, and bias 0."""
    # With None, flax promotes inputs and parameters to a common type, which keeps float64.
    wanted = None if jnp.dtype(dtype) == jnp.float32 else dtype
    init = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
    return nn.Dense(features, dtype=wanted, kernel_init=init, name=name)


class Detector(nn.Module):
    """Action detector, with a feature bank unless the operator is 'none'.

    Attributes:
      backbone: Network of the clip.
      extractor: Features of boxes.
      classifier: Classifier of the joined features.
      operator: One of `bank_operators.OPERATORS`.
      fbo: Non-local operator, or None for the others.
    """

    backbone: SlowOnly
    extractor: RoiExtractor
    classifier: Classifier
    operator: str = "none"
    fbo: NonLocalBank | None = None

    def __call__(
        self,
        video: jax.Array,
        boxes: jax.Array,
        rows: jax.Array | None = None,
        slots: jax.Array | None = None,
        sizes: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Classify the boxes of a batch of clips.

        Args:
          video: RGB, uint8 `[B, T, H, W, 3]`, padded at the right and bottom.
          boxes: Boxes x1, y1, x2, y2 in pixels, `[B, N, 4]`.
          rows: Bank rows of each clip's window, `[B, S, C]`; None without a bank.
          slots: Row in each slot of each box, int32 `[B, N, L]`, -1 for an empty slot; None without a bank.
          sizes: Height and width of each clip without padding, int32 `[B, 2]`; None if nothing is padded.
          train: If true, batch norm uses the batch's own statistics, and dropout acts.

        Returns:
          `logits` `[B, N, A]`; `features` `[B, N, C]`, the short-term features that a bank stores; `cells`
          `[B, N, T', P, P, C]`, the box features before pooling; `joined`, the classifier's input; `maps`, the stages.
        """
        maps, extents = self.backbone(standardise(video), train, sizes)
        cells = self.extractor(maps["layer4"], boxes, extents)
        short = pool(pool(cells, "avg", (2,)), "max", (2, 3))
        joined = cells
        if self.operator != "none":
            if self.operator == "non_local":
                long = self.fbo(short, rows, slots, train)
            else:
                long = pool_bank(rows, slots, self.operator).astype(short.dtype)
            joined = jnp.concatenate([short, long], -1)[:, :, None, None, None]
        logits = self.classifier(joined, train)
        return {"logits": logits, "features": short, "cells": cells, "joined": joined, "maps": maps}

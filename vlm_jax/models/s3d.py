"""S3D with feature gating, a video network of separable 3-D convolutions.

Sources: Xie et al. 2018 (S3D); antoine77340/MIL-NCE_HowTo100M, s3dg.py (the training variant) and
antoine77340/S3D_HowTo100M, s3dg.py (the released weights, space-to-depth stem). Submodules carry the names of the
released checkpoints.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import BatchNorm, Convolution, Initializer, Linear, fan_in_uniform, kaiming_normal
from vlm_jax.ops.convolution import space_to_depth
from vlm_jax.ops.normalisation import weight_channels
from vlm_jax.ops.pooling import max_pool, max_pool_from_start

STEM_FEATURES = (64, 64, 192)
"""Number of channels after conv1, conv_2b and conv_2c."""

BLOCKS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
"""Inception blocks in order, each with the number of channels of b0, b1_a, b1_b, b2_a, b2_b and b3_b."""

POOLS_BEFORE = {
    "3b": ("maxpool_3a", (1, 3, 3), (1, 2, 2)),
    "4b": ("maxpool_4a", (3, 3, 3), (2, 2, 2)),
    "5b": ("maxpool_5a", (2, 2, 2), (2, 2, 2)),
}

INITIALIZERS: dict[str, Initializer] = {"uniform": fan_in_uniform, "kaiming_normal": kaiming_normal}
"""Initialisers of the convolutions by `config.model.weight_init`; linear layers are always `fan_in_uniform`."""


class SelfGating(nn.Module):
    """Gate on channels: the sigmoid of a linear map of the video's mean weights each channel."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Weight the channels of a video `[B, T, H, W, C]`; its shape stays."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        gates = nn.sigmoid(Linear(x.shape[-1], self.dtype, name="fc")(x.mean((1, 2, 3), dtype=wide).astype(x.dtype)))
        return weight_channels(x, gates)


class ConvolutionUnit(nn.Module):
    """Convolution, batch norm and ReLU; a separable unit applies them twice, over space and then over time.

    Attributes:
      features: Number of output channels.
      window: Kernel size along T, H and W.
      strides: Strides along T, H and W.
      padding: Number of zeros at both ends, along T, H and W.
      separable: If true, the kernel is factorised into one over space and one over time.
      groups: Number of groups of consecutive examples with batch statistics of their own.
      kernel_init: Initialiser of the kernels.
      dtype: Compute type.
    """

    features: int
    window: tuple[int, int, int] = (1, 1, 1)
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    separable: bool = False
    groups: int = 1
    kernel_init: Initializer = fan_in_uniform
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the unit to a video `[B, T, H, W, C]`: `[B, T', H', W', features]`."""
        time, height, width = self.window
        steps = [(self.window, self.padding)]
        if self.separable:
            steps = [((1, height, width), (0, *self.padding[1:])), ((time, 1, 1), (self.padding[0], 0, 0))]
        for number, (window, padding) in enumerate(steps, start=1):
            x = Convolution(
                self.features,
                window,
                self.strides,
                tuple((pad, pad) for pad in padding),
                self.kernel_init,
                self.dtype,
                name=f"conv{number}",
            )(x)
            x = nn.relu(BatchNorm(self.groups, name=f"bn{number}")(x, train))
        return x


class S3D(nn.Module):
    """S3D with feature gating on every branch.

    Attributes:
      embedding_dim: Size of the joint space, D.
      blocks: Names of the Inception blocks to keep, in order; the published network has all nine.
      width: Factor on every number of channels; 1.0 for the published network.
      space_to_depth: If true, the stem is that of the released weights (2x4x4 on folded pixels), else the plain one
        (3x7x7, stride 2).
      groups: Number of groups of consecutive examples with batch statistics of their own.
      weight_init: Key of `INITIALIZERS`.
      dtype: Compute type; statistics and parameters are at least float32.
    """

    embedding_dim: int = 512
    blocks: tuple[str, ...] = tuple(BLOCKS)
    width: float = 1.0
    space_to_depth: bool = False
    groups: int = 1
    weight_init: str = "uniform"
    dtype: jnp.dtype = jnp.float32

    def features(self, channels: int) -> int:
        """Return a published number of channels scaled by `width`, at least 4."""
        return max(4, round(channels * self.width))

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False) -> dict[str, Any]:
        """Embed a batch of clips.

        Args:
          video: RGB in [0, 1], `[B, T, H, W, 3]`, not standardised.
          train: If true, batch norm uses the batch's own statistics and updates the running ones.

        Returns:
          `video_embedding` `[B, D]`; `mixed_5c` `[B, C]`, the pooled feature before the last layer (C = 1024 at full
          width); `stages`, the output `[B, T', H', W', C']` of every stage by its name in the checkpoints.
        """

        def unit(name: str, channels: int, window: tuple[int, int, int] = (1, 1, 1), **kwargs: object) -> jax.Array:
            return ConvolutionUnit(
                self.features(channels),
                window,
                groups=self.groups,
                kernel_init=INITIALIZERS[self.weight_init],
                dtype=self.dtype,
                name=name,
                **kwargs,
            )

        stages: dict[str, jax.Array] = {}

        def stage(name: str, value: jax.Array) -> jax.Array:
            stages[name] = value
            return value

        if self.space_to_depth:
            # The statistics of conv1's batch norm include the first frame, row and column: drop these after it.
            x = space_to_depth(video)
            x = stage("conv1", unit("conv1", STEM_FEATURES[0], (2, 4, 4), padding=(1, 2, 2))(x, train))
            x = x[:, 1:, 1:, 1:]
        else:
            stem = unit("conv1", STEM_FEATURES[0], (3, 7, 7), strides=(2, 2, 2), padding=(1, 3, 3))
            x = stage("conv1", stem(video, train))
        x = stage("maxpool_2a", max_pool_from_start(x, (1, 3, 3), (1, 2, 2)))
        x = stage("conv_2b", unit("conv_2b", STEM_FEATURES[1])(x, train))
        conv_2c = unit("conv_2c", STEM_FEATURES[2], (3, 3, 3), padding=(1, 1, 1), separable=True)
        x = stage("conv_2c", conv_2c(x, train))
        x = stage("gating", SelfGating(self.dtype, name="gating")(x))
        for block, (name, window, strides) in POOLS_BEFORE.items():
            x = stage(name, max_pool_from_start(x, window, strides))
            for inception in self.blocks:
                if inception[0] == block[0]:
                    x = stage(f"mixed_{inception}", self._inception(f"mixed_{inception}", BLOCKS[inception], x, train))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        pooled = x.mean((1, 2, 3), dtype=wide)
        embedding = Linear(self.embedding_dim, wide, name="fc")(pooled)
        return {"video_embedding": embedding, "mixed_5c": pooled, "stages": stages}

    def _inception(self, name: str, channels: tuple[int, ...], x: jax.Array, train: bool) -> jax.Array:
        return Inception(
            tuple(map(self.features, channels)),
            self.groups,
            INITIALIZERS[self.weight_init],
            self.dtype,
            name=name,
        )(x, train)


class Inception(nn.Module):
    """Inception block: four gated branches, concatenated along the channels.

    Attributes:
      channels: Number of channels of b0, b1_a, b1_b, b2_a, b2_b and b3_b.
      groups: Number of groups of consecutive examples with batch statistics of their own.
      kernel_init: Initialiser of the kernels.
      dtype: Compute type.
    """

    channels: tuple[int, ...]
    groups: int = 1
    kernel_init: Initializer = fan_in_uniform
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the block to `[B, T, H, W, C]`: `[B, T, H, W, b0 + b1_b + b2_b + b3_b]`."""
        b0, b1_a, b1_b, b2_a, b2_b, b3 = self.channels

        def unit(name: str, features: int, x: jax.Array, separable: bool = False) -> jax.Array:
            window, padding = ((3, 3, 3), (1, 1, 1)) if separable else ((1, 1, 1), (0, 0, 0))
            return ConvolutionUnit(
                features,
                window,
                padding=padding,
                separable=separable,
                groups=self.groups,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=name,
            )(x, train)

        pooled = max_pool(x, (3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)))
        branches = [
            unit("conv_b0", b0, x),
            unit("conv_b1_b", b1_b, unit("conv_b1_a", b1_a, x), separable=True),
            unit("conv_b2_b", b2_b, unit("conv_b2_a", b2_a, x), separable=True),
            unit("conv_b3_b", b3, pooled),
        ]
        gated = [SelfGating(self.dtype, name=f"gating_b{i}")(branch) for i, branch in enumerate(branches)]
        return jnp.concatenate(gated, -1)

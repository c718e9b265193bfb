"""ResNet of bottlenecks over video: of single frames, or with first convolutions that look at three frames.

Sources: He et al. 2016 (table 1), in version 1.5, whose stride is in the 3x3 convolution (torchvision,
models/resnet.py). Submodules carry the names of the released checkpoints.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import BatchNorm, Convolution, FrozenBatchNorm, kaiming_normal_fan_out
from vlm_jax.ops.pooling import max_pool

STEM_FEATURES = 64
WIDTHS = (64, 128, 256, 512)
"""Number of channels inside the bottlenecks of each stage; a stage has four times as many outside."""


def after_stride(extents: jax.Array, stride: int) -> jax.Array:
    """Return heights and widths after a layer whose padding keeps them at stride 1, `[B, 2]`."""
    return (extents - 1) // stride + 1


def keep_extents(x: jax.Array, extents: jax.Array | None) -> jax.Array:
    """Set what lies beyond each clip's height and width to 0, so that a convolution sees its own zero padding there.

    Args:
      x: Maps, `[B, T, H, W, C]`.
      extents: Height and width that each clip really has, `[B, 2]`; None if all is real.
    """
    if extents is None:
        return x
    rows = jnp.arange(x.shape[2]) < extents[:, :1]
    columns = jnp.arange(x.shape[3]) < extents[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[:, None, :, :, None], x, 0)


class ConvolutionUnit(nn.Module):
    """Convolution without bias and batch norm.

    Attributes:
      features: Number of output channels.
      window: Kernel size along T, H and W; the padding keeps sizes at stride 1.
      stride: Stride along H and W.
      groups: Number of groups of consecutive examples with batch statistics of their own.
      scale_init: Initialiser of the batch norm's scale.
      dtype: Compute type.
      frozen: If true, batch norm is done by constants.
    """

    features: int
    window: tuple[int, int, int] = (1, 1, 1)
    stride: int = 1
    groups: int = 1
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the unit to `[B, T, H, W, C]`: `[B, T, H', W', features]`."""
        x = Convolution(
            self.features,
            self.window,
            (1, self.stride, self.stride),
            tuple((size // 2, size // 2) for size in self.window),
            kaiming_normal_fan_out,
            self.dtype,
            name="conv",
        )(x)
        if self.frozen:
            return FrozenBatchNorm(name="bn")(x)
        return BatchNorm(self.groups, running="mean", scale_init=self.scale_init, name="bn")(x, train)


class Bottleneck(nn.Module):
    """Residual block of three convolutions with the spatial stride in the middle one.

    Attributes:
      width: Number of channels of the first two convolutions; the block has four times as many outputs.
      stride: Stride along H and W.
      inflated: If true, the first convolution looks at three frames.
      project: If true, the shortcut is a convolution.
      groups: Number of groups of consecutive examples with batch statistics of their own.
      dtype: Compute type.
      frozen: If true, batch norm is done by constants.
    """

    width: int
    stride: int = 1
    inflated: bool = False
    project: bool = False
    groups: int = 1
    dtype: jnp.dtype = jnp.float32
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, extents: jax.Array | None = None) -> jax.Array:
        """Apply the block to `[B, T, H, W, C]`, of which `extents` `[B, 2]` are real: `[B, T, H', W', 4 * width]`."""

        def unit(name: str, features: int, window: tuple[int, int, int] = (1, 1, 1), **kwargs: object) -> nn.Module:
            kwargs |= {"groups": self.groups, "dtype": self.dtype, "frozen": self.frozen, "name": name}
            return ConvolutionUnit(features, window, **kwargs)

        out = nn.relu(unit("conv1", self.width, (3 if self.inflated else 1, 1, 1))(x, train))
        out = keep_extents(out, extents)
        out = nn.relu(unit("conv2", self.width, (1, 3, 3), stride=self.stride)(out, train))
        out = unit("conv3", 4 * self.width, scale_init=nn.initializers.zeros)(out, train)
        if self.project:
            x = unit("downsample", 4 * self.width, stride=self.stride)(x, train)
        return nn.relu(out + x)


class Stage(nn.Module):
    """Blocks of one stage; the first one has the stride and a projection.

    Attributes:
      blocks: Number of blocks.
      width: Number of channels inside of a block.
      stride: Stride of the first block along H and W.
      inflated: If true, the first convolution of every block looks at three frames.
      groups: Number of groups of consecutive examples with batch statistics of their own.
      dtype: Compute type.
      frozen: If true, batch norm is done by constants.
    """

    blocks: int
    width: int
    stride: int
    inflated: bool
    groups: int = 1
    dtype: jnp.dtype = jnp.float32
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, extents: jax.Array | None) -> jax.Array:
        """Apply the stage to `[B, T, H, W, C]`: `[B, T, H', W', 4 * width]`."""
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            options = {"groups": self.groups, "dtype": self.dtype, "frozen": self.frozen, "name": str(number)}
            block = Bottleneck(self.width, stride, self.inflated, project=number == 0, **options)
            x = block(x, train, extents)
            extents = None if extents is None else after_stride(extents, stride)
        return x


class ResNet(nn.Module):
    """ResNet that keeps the number of frames; the defaults are ResNet-50 of single frames, 32 pixels per cell.

    Attributes:
      blocks: Number of blocks per stage; (3, 4, 6, 3) is ResNet-50.
      width: Factor on every number of channels; 1.0 for the published network.
      groups: Number of groups of consecutive examples with batch statistics of their own.
      dtype: Compute type; statistics and parameters are at least float32.
      strides: Stride of each stage along H and W.
      inflated: Stages whose first convolution looks at three frames.
      frozen: If true, batch norm is done by constants, which are in the collection `frozen`.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: float = 1.0
    groups: int = 1
    dtype: jnp.dtype = jnp.float32
    strides: tuple[int, ...] = (1, 2, 2, 2)
    inflated: tuple[bool, ...] = (False, False, False, False)
    frozen: bool = False

    def features(self, channels: int) -> int:
        """Return a published number of channels scaled by `width`, at least 4."""
        return max(4, round(channels * self.width))

    @nn.compact
    def __call__(
        self, video: jax.Array, train: bool = False, extents: jax.Array | None = None
    ) -> tuple[dict[str, jax.Array], jax.Array | None]:
        """Compute the maps of a batch of clips.

        Clips of different sizes are padded at the right and bottom; what is padded changes no feature of the rest.

        Args:
          video: Standardised RGB, `[B, T, H, W, 3]`.
          train: If true, batch norm uses the batch's own statistics and updates the running ones.
          extents: Height and width of every clip without padding, pixels, int32 `[B, 2]`; None if nothing is padded.

        Returns:
          Maps `[B, T, H', W', C']` by their names in the checkpoints, `conv1`, `pool1` and `layer1` to `layer4`; and
          the height and width in cells of each clip's last map `[B, 2]`, or None.
        """
        options = {"groups": self.groups, "dtype": self.dtype, "frozen": self.frozen}
        stem = ConvolutionUnit(self.features(STEM_FEATURES), (1, 7, 7), 2, name="conv1", **options)
        maps = {"conv1": nn.relu(stem(keep_extents(video, extents), train))}
        extents = None if extents is None else after_stride(extents, 2)
        # After ReLU, a border of zeros is as good as one of minus infinity.
        x = max_pool(keep_extents(maps["conv1"], extents), (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)))
        maps["pool1"] = x
        extents = None if extents is None else after_stride(extents, 2)
        for number, (blocks, width, stride, inflated) in enumerate(
            zip(self.blocks, WIDTHS, self.strides, self.inflated, strict=True), start=1
        ):
            stage = Stage(blocks, self.features(width), stride, inflated, name=f"layer{number}", **options)
            x = maps[f"layer{number}"] = stage(x, train, extents)
            extents = None if extents is None else after_stride(extents, stride)
        return maps, extents

"""Pyramid vision transformer, version 2 (PVTv2-B2), over single frames.

Sources: Wang et al. 2022 (PVT v2); whai362/PVT, classification/pvt_v2.py. Submodules carry the names of the released
checkpoints. Stochastic depth is left out, as in alipay/Ant-Multi-Modal-Framework.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import Convolution, LayerNorm, compute_in, dense, kaiming_normal_fan_out
from vlm_jax.ops.attention import full_attention, merge_heads, split_heads
from vlm_jax.ops.convolution import convolve_depthwise_planes

INITIAL = nn.initializers.normal(0.02)
EPSILON = 1e-6
"""Epsilon of the norms of blocks and stages; the others have 1e-5."""


def frame_convolution(features: int, size: int, stride: int, padding: int, dtype: jnp.dtype, name: str) -> nn.Module:
    """Return a convolution of single frames with bias."""
    edges = (padding, padding)
    strides = (1, stride, stride)
    options = {"kernel_init": kaiming_normal_fan_out, "dtype": dtype, "use_bias": True, "name": name}
    return Convolution(features, (1, size, size), strides, ((0, 0), edges, edges), **options)


class PatchEmbed(nn.Module):
    """Strided convolution of overlapping patches, and a norm.

    Attributes:
      features: Number of output channels.
      size: Side of a patch, odd.
      stride: Stride along H and W.
      dtype: Compute type.
    """

    features: int
    size: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Embed `[B, T, H, W, C]`: `[B, T, H', W', features]`."""
        x = frame_convolution(self.features, self.size, self.stride, self.size // 2, self.dtype, "proj")(x)
        return LayerNorm(name="norm")(x)


class ReducedAttention(nn.Module):
    """Attention within a frame whose keys and values come from a smaller map.

    Attributes:
      heads: Number of heads.
      reduction: Factor by which height and width of the keys' map are smaller.
      dtype: Compute type.
    """

    heads: int
    reduction: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend within each frame of `[B, T, H, W, C]`; the shape stays."""
        channels = x.shape[-1]
        linear = functools.partial(dense, dtype=self.dtype, kernel_init=INITIAL)
        seen = x
        if self.reduction > 1:
            seen = frame_convolution(channels, self.reduction, self.reduction, 0, self.dtype, "sr")(seen)
            seen = LayerNorm(name="norm")(seen)
        query = linear(channels, name="q")(x)
        key, value = jnp.split(linear(2 * channels, name="kv")(seen), 2, -1)
        parts = (split_heads(part.reshape(*part.shape[:2], -1, channels), self.heads) for part in (query, key, value))
        return linear(channels, name="proj")(merge_heads(full_attention(*parts)).reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers with a depthwise convolution and GELU between them.

    Attributes:
      hidden: Number of channels between the layers.
      dtype: Compute type.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers to `[B, T, H, W, C]`; the shape stays."""
        channels = x.shape[-1]
        x = dense(self.hidden, self.dtype, "fc1", INITIAL)(x)
        kernel = self.param("dwconv_kernel", nn.initializers.normal((2 / 9) ** 0.5), (3, 3, self.hidden))
        bias = self.param("dwconv_bias", nn.initializers.zeros, (self.hidden,))
        x, kernel, bias = compute_in(self.dtype, x, kernel, bias)
        x = nn.gelu(convolve_depthwise_planes(x, kernel) + bias, approximate=False)
        return dense(channels, self.dtype, "fc2", INITIAL)(x)


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a residual.

    Attributes:
      heads: Number of heads.
      ratio: Number of channels inside the MLP per channel outside.
      reduction: Factor by which height and width of the keys' map are smaller.
      dtype: Compute type.
    """

    heads: int
    ratio: int
    reduction: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[B, T, H, W, C]`; the shape stays."""
        attention = ReducedAttention(self.heads, self.reduction, self.dtype, name="attn")
        x = x + attention(LayerNorm(EPSILON, name="norm1")(x))
        mlp = Mlp(self.ratio * x.shape[-1], self.dtype, name="mlp")
        return x + mlp(LayerNorm(EPSILON, name="norm2")(x))


class PyramidTransformer(nn.Module):
    """PVT v2; the defaults are PVTv2-B2.

    Attributes:
      widths: Number of channels of each stage.
      depths: Number of blocks of each stage.
      heads: Number of heads of each stage.
      ratios: Number of channels inside the MLPs per channel outside, by stage.
      reductions: Factor by which height and width of the keys' maps are smaller, by stage.
      remat: If true, blocks are computed again in the backward pass, which saves memory.
      dtype: Compute type; parameters, softmax and norms are at least float32.
    """

    widths: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Compute the last map of every frame.

        Args:
          video: Standardised RGB, `[B, T, H, W, 3]`.

        Returns:
          `[B, T, H / 32, W / 32, C]`, sizes rounded up.
        """
        block = nn.remat(Block) if self.remat else Block
        x = compute_in(self.dtype, video)[0]
        stages = zip(self.widths, self.depths, self.heads, self.ratios, self.reductions, strict=True)
        for stage, (width, depth, heads, ratio, reduction) in enumerate(stages, start=1):
            size, stride = (7, 4) if stage == 1 else (3, 2)
            x = PatchEmbed(width, size, stride, self.dtype, name=f"patch_embed{stage}")(x)
            for number in range(depth):
                x = block(heads, ratio, reduction, self.dtype, name=f"block{stage}_{number}")(x)
            x = LayerNorm(EPSILON, name=f"norm{stage}")(x)
        return x

"""Video Swin transformer: attention within windows of space and time, shifted in every other block.

Sources: Liu et al. 2022 (Video Swin); SwinTransformer/Video-Swin-Transformer, mmaction/models/backbones/
swin_transformer.py, in the form of alipay/Ant-Multi-Modal-Framework, whose patches overlap in time. Submodules carry
the names of the released checkpoints.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.models.layers import Convolution, LayerNorm, dense, drop_path
from vlm_jax.ops.attention import full_attention, merge_heads, split_heads

INITIAL = nn.initializers.normal(0.02)
PATCH = (2, 4, 4)
"""Size of a patch in frames and pixels; patches overlap in time, where their stride is 1."""
ELSEWHERE = -100.0
"""Bias of keys that a shift has brought into the window from the other end of an axis."""

Extent = tuple[int, int, int]
"""Sizes or shifts along T, H and W."""


def fit_window(size: Extent, window: Extent, shift: Extent) -> tuple[Extent, Extent]:
    """Return window and shift for a map: an axis that is not longer than the window has one window and no shift."""
    fits = [length <= wanted for length, wanted in zip(size, window, strict=True)]
    return (
        tuple(length if fit else wanted for fit, length, wanted in zip(fits, size, window, strict=True)),
        tuple(0 if fit else wanted for fit, wanted in zip(fits, shift, strict=True)),
    )


def to_windows(x: jax.Array, window: Extent) -> jax.Array:
    """Cut `[B, T, H, W, C]`, whose sizes are multiples of the window's, into windows of N positions: `[B, G, N, C]`."""
    batch, *size, channels = x.shape
    counts = [length // side for length, side in zip(size, window, strict=True)]
    sides = [each for pair in zip(counts, window, strict=True) for each in pair]
    x = x.reshape(batch, *sides, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, math.prod(counts), math.prod(window), channels)


def from_windows(x: jax.Array, window: Extent, size: Extent) -> jax.Array:
    """Put windows `[B, G, N, C]` back to a map of the given size, as the inverse of `to_windows`: `[B, T, H, W, C]`."""
    counts = [length // side for length, side in zip(size, window, strict=True)]
    x = x.reshape(len(x), *counts, *window, x.shape[-1]).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(len(x), *size, x.shape[-1])


def window_regions(size: Extent, window: Extent, shift: Extent) -> jax.Array:
    """Return the region of every position of a shifted map: `[G, N]`; only positions of one region are neighbours."""
    region = jnp.zeros((), int)
    for length, side, moved in zip(size, window, shift, strict=True):
        place = np.arange(length)
        own = (place >= length - side).astype(int) + (place >= length - moved) if moved else np.zeros(length, int)
        region = 3 * region[..., None] + own
    return to_windows(region[None, ..., None], window)[0, :, :, 0]


def relative_positions(window: Extent, positions: int) -> jax.Array:
    """Return the row in the bias table of every query and key among the first positions of a window, `[N, N]`.

    Positions are counted in the full window even where a map's window is smaller: the reference takes the corner of
    the full window's index.
    """
    factors = ((2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1)
    places = np.unravel_index(np.arange(positions), window)
    code = sum(place * factor for place, factor in zip(places, factors, strict=True))
    middle = sum((side - 1) * factor for side, factor in zip(window, factors, strict=True))
    code = jnp.asarray(code)
    return code[:, None] - code[None, :] + middle


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias by distance.

    Attributes:
      heads: Number of heads.
      window: Size of the full window.
      dtype: Compute type.
    """

    heads: int
    window: Extent
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, regions: jax.Array | None) -> jax.Array:
        """Attend within windows `[B, G, N, C]`; the shape stays.

        Args:
          x: Windows.
          regions: Region of every position, `[G, N]`; None if all are neighbours.
        """
        channels = x.shape[-1]
        rows = math.prod(2 * side - 1 for side in self.window)
        table = self.param("relative_position_bias_table", INITIAL, (rows, self.heads))
        bias = jnp.moveaxis(table[relative_positions(self.window, x.shape[2])], -1, 0)
        if regions is not None:
            apart = regions[:, None, :, None] != regions[:, None, None, :]
            bias = bias + jnp.where(apart, ELSEWHERE, 0.0)
        qkv = dense(3 * channels, self.dtype, "qkv", INITIAL)(x)
        parts = (split_heads(part, self.heads) for part in jnp.split(qkv, 3, -1))
        out = merge_heads(full_attention(*parts, bias=bias))
        return dense(channels, self.dtype, "proj", INITIAL)(out)


class Block(nn.Module):
    """Window attention and MLP, each after a norm and with a residual.

    Attributes:
      heads: Number of heads.
      window: Size of the window.
      shift: Shift of the windows.
      drop_path: Rate of stochastic depth.
      dtype: Compute type.
    """

    heads: int
    window: Extent
    shift: Extent
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the block to `[B, T, H, W, C]`; the shape stays."""

        def residual(out: jax.Array) -> jax.Array:
            dropped = train and self.drop_path > 0
            return drop_path(out, self.drop_path, self.make_rng("drop_path")) if dropped else out

        x = x + residual(self._attend(LayerNorm(name="norm1")(x)))
        channels = x.shape[-1]
        hidden = dense(4 * channels, self.dtype, "fc1", INITIAL)(LayerNorm(name="norm2")(x))
        return x + residual(dense(channels, self.dtype, "fc2", INITIAL)(nn.gelu(hidden, approximate=False)))

    def _attend(self, x: jax.Array) -> jax.Array:
        size = x.shape[1:4]
        window, shift = fit_window(size, self.window, self.shift)
        # Padding is a part of the last windows: zeros that are attended to.
        edges = [(0, -length % side) for length, side in zip(size, window, strict=True)]
        x = jnp.pad(x, [(0, 0), *edges, (0, 0)])
        padded, regions = x.shape[1:4], None
        if any(shift):
            x = jnp.roll(x, [-each for each in shift], (1, 2, 3))
            regions = window_regions(padded, window, shift)
        attention = WindowAttention(self.heads, self.window, self.dtype, name="attn")
        x = from_windows(attention(to_windows(x, window), regions), window, padded)
        if any(shift):
            x = jnp.roll(x, shift, (1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]]


class PatchMerging(nn.Module):
    """Norm and linear layer that halve height and width and double the channels."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Merge 2x2 cells of `[B, T, H, W, C]`: `[B, T, H / 2, W / 2, 2C]`, sizes rounded up."""
        channels = x.shape[-1]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2), (0, 0)))
        cells = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = LayerNorm(name="norm")(jnp.concatenate(cells, -1))
        return dense(2 * channels, self.dtype, "reduction", INITIAL, use_bias=False)(x)


class VideoSwin(nn.Module):
    """Video Swin that keeps the number of frames; the defaults are the sizes of SNP-S3.

    Attributes:
      features: Number of channels of the first stage; every stage has twice as many as the one before.
      depths: Number of blocks of each stage.
      heads: Number of heads of each stage.
      window: Size of a window.
      drop_path: Rate of stochastic depth of the last block; it grows linearly from 0.
      remat: If true, blocks are computed again in the backward pass, which saves memory.
      dtype: Compute type; parameters, softmax and norms are at least float32.
    """

    features: int = 96
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: Extent = (8, 7, 7)
    drop_path: float = 0.2
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False) -> jax.Array:
        """Compute the last map of a video.

        Args:
          video: Standardised RGB, `[B, T, H, W, 3]`.
          train: If true, residuals are dropped at random.

        Returns:
          `[B, T, H / 32, W / 32, C]`, sizes rounded up.
        """
        kind = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        block = functools.partial(kind, window=self.window, dtype=self.dtype)
        height, width = video.shape[2:4]
        padding = ((0, PATCH[0] - 1), (0, -height % PATCH[1]), (0, -width % PATCH[2]))
        options = {"dtype": self.dtype, "use_bias": True, "name": "patch_embed"}
        x = Convolution(self.features, PATCH, (1, *PATCH[1:]), padding, **options)(video)
        x = LayerNorm(name="patch_embed_norm")(x)
        rates = iter(np.linspace(0, self.drop_path, sum(self.depths)).tolist())
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            for number in range(depth):
                shift = tuple(side // 2 for side in self.window) if number % 2 else (0, 0, 0)
                name = f"stage{stage}_block{number}"
                x = block(heads, shift=shift, drop_path=next(rates), name=name)(x, train)
            if stage < len(self.depths) - 1:
                x = PatchMerging(self.dtype, name=f"stage{stage}_downsample")(x)
        return LayerNorm(name="norm")(x)

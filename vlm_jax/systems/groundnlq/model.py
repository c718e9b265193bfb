"""Network of GroundNLQ: a feature pyramid over a long video, fused with a question, with dense heads (Hou et al. 2023).

Reference: houzhijian/GroundNLQ, `libs/modeling`. Sequences are `[B, T, C]`, masks bool `[B, T]`. As in the reference, a
mask is applied right after a convolution but not after a norm. Positions that do not exist therefore hold the norm's
bias, and the next convolution reads it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.models.layers import LayerNorm, compute_in, dense, drop_path, fan_in_uniform
from vlm_jax.ops.attention import full_attention, merge_heads, split_heads, window_attention
from vlm_jax.ops.convolution import convolve_depthwise, convolve_time
from vlm_jax.ops.normalisation import scale_channels
from vlm_jax.ops.pooling import max_pool

EMPTY = 1e-6
"""Initial probability of classes without training examples."""


class Levels(NamedTuple):
    """Outputs of the heads, one entry per level of the pyramid, finest first.

    Attributes:
      logits: Class logits, `[B, T_l, N]`.
      offsets: Distances to start and end in strides of the level, `[B, T_l, 2]`, not negative.
      masks: Points that exist, bool `[B, T_l]`.
    """

    logits: list[jax.Array]
    offsets: list[jax.Array]
    masks: list[jax.Array]


class MaskedConv(nn.Module):
    """Convolution over time, padded with zeros to keep the length, followed by a mask."""

    features: int
    kernel_size: int
    use_bias: bool = False
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Convolve `x` `[B, T, C]` and apply `mask` `[B, T]`: `[B, T, features]`."""
        kernel = self.param("kernel", fan_in_uniform, (self.kernel_size, x.shape[-1], self.features))
        x, kernel = compute_in(self.dtype, x, kernel)
        out = convolve_time(x, kernel)
        if self.use_bias:
            out = out + self.param("bias", self.bias_init, (self.features,)).astype(out.dtype)
        return out * mask[:, :, None]


class DepthwiseConv(nn.Module):
    """Depthwise convolution over time with kernel size 3, followed by a mask."""

    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Convolve `x` `[B, T, C]` and apply `mask` `[B, T / stride]`: `[B, T / stride, C]`."""
        kernel = self.param("kernel", fan_in_uniform, (3, 1, x.shape[-1]))
        x, kernel = compute_in(self.dtype, x, kernel)
        return convolve_depthwise(x, kernel[:, 0], self.stride) * mask[:, :, None]


class SelfAttention(nn.Module):
    """Self-attention whose queries, keys and values each pass a depthwise convolution and a norm first.

    A query sees `window` positions, an odd number, or all of them if it is 0.
    """

    heads: int
    stride: int = 1
    window: int = 0
    relative_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Attend over `x` `[B, T, C]` with the mask after the stride `[B, T / stride]`: `[B, T / stride, C]`."""
        channels = x.shape[-1]
        parts = []
        for name in ("query", "key", "value"):
            part = DepthwiseConv(self.stride, self.dtype, name=f"{name}_conv")(x, mask)
            part = LayerNorm(name=f"{name}_norm")(part)
            parts.append(split_heads(dense(channels, self.dtype, name)(part), self.heads))
        if self.window:
            bias = None
            if self.relative_bias:
                initial = nn.initializers.truncated_normal((2 / channels) ** 0.5, lower=-2, upper=2)
                bias = self.param("relative_bias", initial, (self.heads, self.window))
            out = window_attention(*parts, mask, self.window, bias)
        else:
            out = full_attention(*parts, mask)
        return dense(channels, self.dtype, "project")(merge_heads(out)) * mask[:, :, None]


class CrossAttention(nn.Module):
    """Cross-attention from video positions to words."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, text: jax.Array, text_mask: jax.Array) -> jax.Array:
        """Attend from `x` `[B, T, C]`, `mask` `[B, T]` to `text` `[B, L, C]`, `text_mask` `[B, L]`: `[B, T, C]`."""
        channels = x.shape[-1]
        query = split_heads(dense(channels, self.dtype, "query")(x), self.heads)
        key, value = (split_heads(dense(channels, self.dtype, name)(text), self.heads) for name in ("key", "value"))
        out = full_attention(query, key, value, text_mask)
        return dense(channels, self.dtype, "project")(merge_heads(out)) * mask[:, :, None]


class DropPath(nn.Module):
    """Learned scale per channel, and stochastic depth in training; with rate 0 neither."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scale the residual `[B, T, C]` and, if `train` is true, drop it at random per example; the shape stays."""
        if not self.rate:
            return x
        x = scale_channels(x, self.param("scale", nn.initializers.constant(1e-4), (x.shape[-1],)))
        return drop_path(x, self.rate, self.make_rng("drop_path")) if train else x


class Block(nn.Module):
    """Transformer block; with stride 2 it halves the sequence.

    Attributes:
      heads: Number of heads.
      stride: Stride over time, 1 or 2.
      window: Number of positions that a query sees in self-attention; 0 for all.
      relative_bias: If true, self-attention has a learned bias by distance.
      cross: If true, the block has cross-attention to the words.
      drop_path: Rate of stochastic depth.
      dtype: Compute type.
    """

    heads: int
    stride: int = 1
    window: int = 0
    relative_bias: bool = False
    cross: bool = False
    drop_path: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        extent: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Apply the block and return the sequence `[B, T / stride, C]` and its mask `[B, T / stride]`.

        Args:
          x: Sequence, `[B, T, C]`.
          mask: Positions that exist, `[B, T]`.
          text: Words, `[B, L, C]`; needed if `cross` is true.
          text_mask: Words that exist, `[B, L]`.
          extent: Positions that the reference's sequence would hold, padding included, `[B, T]`. Where ours is padded
            further, convolutions see zeros beyond the extent, as at the end of a sequence. None for all.
          train: If true, residuals are dropped at random.
        """
        channels = x.shape[-1]
        after = mask[:, :: self.stride]
        normed = LayerNorm(name="norm1")(x)
        if extent is not None:
            normed = normed * extent[:, :, None]
        attended = SelfAttention(
            self.heads, self.stride, self.window, self.relative_bias, self.dtype, name="attention"
        )(normed, after)
        # One module for both attentions: they share its scale, but not its random draws.
        drop = DropPath(self.drop_path, name="drop_attention")
        skipped = x if self.stride == 1 else _max_pool(x)
        x = skipped * after[:, :, None] + drop(attended, train)
        if self.cross:
            norm = LayerNorm(name="norm3")
            crossed = CrossAttention(self.heads, self.dtype, name="cross_attention")(
                norm(x), after, norm(text), text_mask
            )
            x = x * after[:, :, None] + drop(crossed, train)
        hidden = dense(4 * channels, self.dtype, "mlp_in")(LayerNorm(name="norm2")(x))
        hidden = dense(channels, self.dtype, "mlp_out")(nn.gelu(hidden, approximate=False))
        return x + DropPath(self.drop_path, name="drop_mlp")(hidden * after[:, :, None], train), after


class Head(nn.Module):
    """Head of convolutions that all levels share; `layers` counts the last convolution, which has no norm."""

    outputs: int
    dim: int
    layers: int = 3
    kernel_size: int = 3
    norm: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], masks: Sequence[jax.Array]) -> list[jax.Array]:
        """Apply the head to every level `[B, T_l, C]` with its mask `[B, T_l]`: `[B, T_l, outputs]` each."""
        for number in range(self.layers - 1):
            conv = MaskedConv(
                self.dim, self.kernel_size, use_bias=not self.norm, dtype=self.dtype, name=f"conv{number}"
            )
            normalise = LayerNorm(name=f"norm{number}") if self.norm else lambda x: x
            levels = [nn.relu(normalise(conv(x, mask))) for x, mask in zip(levels, masks, strict=True)]
        last = MaskedConv(
            self.outputs, self.kernel_size, use_bias=True, bias_init=self.bias_init, dtype=self.dtype, name="output"
        )
        return [last(x, mask) for x, mask in zip(levels, masks, strict=True)]


class GroundNLQ(nn.Module):
    """GroundNLQ; the defaults are the published sizes.

    Attributes:
      dim: Number of channels in the backbone, C.
      head_dim: Number of hidden channels in the heads.
      heads: Number of attention heads.
      embedding_layers: Number of convolutions that embed video features, and of those that embed word features.
      text_blocks: Number of blocks over the words.
      stem_blocks: Number of blocks over the video at full length, with cross-attention to the words.
      cross_blocks: Number of pyramid blocks with cross-attention to the words (six in GroundNLQ*).
      plain_blocks: Number of pyramid blocks without.
      windows: Attention windows of the stem and of every pyramid block, or one for all; 0 for full attention.
      max_length: Number of rows of the position table, the T that inputs are padded to.
      position_table: If true, position encodings are added to the video.
      relative_bias: If true, window attention has a learned bias by distance.
      embedding_kernel: Kernel size of the convolutions that embed video features.
      embedding_norm: If true, embeddings are normalised.
      neck_norm: If true, levels are normalised before the heads.
      head_kernel: Kernel size of the heads' convolutions.
      head_layers: Number of convolutions per head, the last one included.
      head_norm: If true, the hidden layers of the heads are normalised.
      classes: Number of classes, N.
      prior: Initial probability of a class.
      empty_classes: Classes without training examples, whose initial probability is 1e-6 (`head_empty_cls`).
      drop_path: Rate of stochastic depth; 0 omits the learned scales, too.
      dtype: Compute type.
    """

    dim: int = 384
    head_dim: int = 384
    heads: int = 4
    embedding_layers: int = 2
    text_blocks: int = 4
    stem_blocks: int = 4
    cross_blocks: int = 0
    plain_blocks: int = 6
    windows: tuple[int, ...] = (9,)
    max_length: int = 2560
    position_table: bool = True
    relative_bias: bool = False
    embedding_kernel: int = 3
    embedding_norm: bool = True
    neck_norm: bool = True
    head_kernel: int = 3
    head_layers: int = 3
    head_norm: bool = True
    classes: int = 1
    prior: float = 0.01
    empty_classes: tuple[int, ...] = ()
    drop_path: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        video: jax.Array,
        mask: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        extent: jax.Array | None = None,
        train: bool = False,
    ) -> Levels:
        """Return class logits and offsets at every level of the pyramid.

        Args:
          video: Features of clips, `[B, T, C_v]`, zeros as padding; T is a multiple of the last level's stride.
          mask: Positions that exist, bool `[B, T]`.
          text: Features of words, `[B, L, C_t]`, zeros as padding.
          text_mask: Words that exist, bool `[B, L]`.
          extent: Word positions that the reference's batch would hold, padding included, bool `[B, L]`: those before
            the end of its longest question. None for all.
          train: If true, residuals are dropped at random.
        """
        text = self._embed("text", text, text_mask, 1)
        for number in range(self.text_blocks):
            block = self._block(f"text_stem_{number}")
            text, _ = block(text, text_mask, extent=extent, train=train)
        x = self._embed("video", video, mask, self.embedding_kernel)
        if self.position_table:
            table = position_table(self.max_length, self.dim, x.shape[1])
            x = x + jnp.asarray(table, x.dtype) * mask[:, :, None]
        for number in range(self.stem_blocks):
            block = self._block(f"video_stem_{number}", window=self.windows[0], cross=True)
            x, mask = block(x, mask, text, text_mask, train=train)
        levels, masks = [x], [mask]
        for number in range(self.cross_blocks + self.plain_blocks):
            fused = number < self.cross_blocks
            # The reference restarts the count of windows at the second kind of block.
            place = 1 + (number if fused else number - self.cross_blocks)
            window = self.windows[place] if len(self.windows) > 1 else self.windows[0]
            block = self._block(f"pyramid_{number}", window=window, cross=fused, stride=2)
            x, mask = block(x, mask, text, text_mask, train=train)
            levels.append(x)
            masks.append(mask)
        if self.neck_norm:
            levels = [LayerNorm(name=f"neck_norm_{number}")(x) for number, x in enumerate(levels)]
        logits = self._head("class_head", self.classes, self._class_bias)(levels, masks)
        offsets = self._head("offset_head", 2, nn.initializers.zeros)(levels, masks)
        offsets = [
            nn.relu(offset * self.param(f"level_scale_{number}", nn.initializers.ones, ()).astype(offset.dtype))
            for number, offset in enumerate(offsets)
        ]
        return Levels(logits, offsets, masks)

    def _block(self, name: str, window: int = 0, cross: bool = False, stride: int = 1) -> Block:
        relative = self.relative_bias and window > 0
        return Block(self.heads, stride, window, relative, cross, self.drop_path, self.dtype, name=name)

    def _embed(self, name: str, x: jax.Array, mask: jax.Array, kernel: int) -> jax.Array:
        for number in range(self.embedding_layers):
            own, use_bias = f"{name}_embedding_{number}", not self.embedding_norm
            conv = MaskedConv(self.dim, kernel, use_bias=use_bias, dtype=self.dtype, name=own)
            x = conv(x, mask)
            if self.embedding_norm:
                x = LayerNorm(name=f"{name}_embedding_norm_{number}")(x)
            x = nn.relu(x)
        return x

    def _head(self, name: str, outputs: int, bias_init: nn.initializers.Initializer) -> Head:
        return Head(
            outputs, self.head_dim, self.head_layers, self.head_kernel, self.head_norm, bias_init, self.dtype, name=name
        )

    def _class_bias(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        del key
        bias = jnp.full(shape, _logit(self.prior), dtype)
        return bias.at[jnp.array(self.empty_classes)].set(_logit(EMPTY)) if self.empty_classes else bias


def _logit(chance: float) -> float:
    return -math.log((1 - chance) / chance)


def position_table(rows: int, dim: int, length: int) -> np.ndarray:
    """Return a table of sinusoidal position encodings over sqrt(dim), float32 `[length, dim]`, sines at even channels.

    For `length` above `rows`, the table of `rows` rows is stretched by linear interpolation, like torch's `interpolate`
    with `align_corners=False`.
    """
    angle = np.arange(rows)[:, None] / np.power(10000, 2 * (np.arange(dim) // 2) / dim)
    table = np.where(np.arange(dim) % 2, np.cos(angle), np.sin(angle)) / np.sqrt(dim)
    if length <= rows:
        return table[:length].astype(np.float32)
    place = np.clip((np.arange(length) + 0.5) * rows / length - 0.5, 0, rows - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, rows - 1)
    share = (place - low)[:, None]
    return (table[low] * (1 - share) + table[high] * share).astype(np.float32)


def _max_pool(x: jax.Array) -> jax.Array:
    """Max-pool over time with window 3 and stride 2: `[B, T, C]` -> `[B, T / 2, C]`."""
    return max_pool(x[:, :, None, None], (3, 1, 1), (2, 1, 1), ((1, 1), (0, 0), (0, 0)))[:, :, 0, 0]

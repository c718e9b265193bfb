"""Network of SNP-S3: a visual encoder with one token per clip, one BERT for text and for text with clips, and heads.

Sources: Wang et al. 2023; alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.bert import Bert
from vlm_jax.models.layers import Linear
from vlm_jax.models.resnet import ResNet
from vlm_jax.models.swin3d import VideoSwin
from vlm_jax.ops.normalisation import l2_normalise
from vlm_jax.ops.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from vlm_jax.systems.snps3.heads import MaskedWordHead, MatchingHead


class Clips(NamedTuple):
    """Outputs for the clips of a video.

    Attributes:
      tokens: Mean of each clip's grid features, `[B, C, D]`; what the cross encoder reads.
      embeddings: Embeddings of the clips with length 1, at least float32, `[B, C, D]`.
    """

    tokens: jax.Array
    embeddings: jax.Array


def standardise(video: jax.Array, sizes: jax.Array | None) -> jax.Array:
    """Return frames in float32 or wider, standardised, with zeros beyond each picture.

    Args:
      video: RGB, uint8 or floating-point values in [0, 255], `[B, N, H, W, 3]`.
      sizes: Height and width of each video's pictures, int32 `[B, 2]`; None if they fill the frames.
    """
    wide = jnp.promote_types(jnp.result_type(video.dtype, jnp.float32), jnp.float32)
    mean, deviation = jnp.array(IMAGENET_MEAN, wide), jnp.array(IMAGENET_DEVIATION, wide)
    standard = (video.astype(wide) / 255 - mean) / deviation
    if sizes is None:
        return standard
    return jnp.where(_inside(sizes, *video.shape[2:4])[:, None, :, :, None], standard, 0)


def _inside(sizes: jax.Array, height: int, width: int) -> jax.Array:
    """Return the positions of a frame that lie in each picture of the given sizes, bool `[B, H, W]`."""
    rows, columns = jnp.arange(height) < sizes[:, :1], jnp.arange(width) < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def grid_mask(
    sizes: jax.Array, frame: tuple[int, int], grid: tuple[int, int], groups: int = 1, strict: bool = False
) -> jax.Array:
    """Return the cells of the grid that are averaged, bool `[B, h, w]`: those whose first pixel lies in the picture.

    A group of examples has one canvas, whose sides are the largest of its pictures. If `strict`, a cell of the canvas
    is left out only if it lies beyond both the height and the width of its picture, as in the reference: the zeros
    beside a picture that is as high as the canvas count.

    Args:
      sizes: Height and width of each picture, `[B, 2]`.
      frame: Height and width of the padded frames, H and W.
      grid: Height and width of the grid, h and w.
      groups: Number of groups of consecutive examples.
      strict: If true, only corners are left out.
    """
    canvas = jnp.repeat(sizes.reshape(groups, -1, 2).max(1), len(sizes) // groups, 0)

    def axis(number: int) -> tuple[jax.Array, jax.Array]:
        extent = -(-canvas[:, number] * grid[number] // frame[number])
        place = jnp.arange(grid[number])
        source = place * canvas[:, number, None] // extent[:, None]
        return place < extent[:, None], source < sizes[:, number, None]

    (rows, above), (columns, left) = axis(0), axis(1)
    above, left = above[:, :, None], left[:, None, :]
    return rows[:, :, None] & columns[:, None, :] & ((above | left) if strict else (above & left))


class VisualEncoder(nn.Module):
    """Visual network, and the mean of each clip's grid.

    Attributes:
      network: Network over frames, whose last map is the grid.
      features: Number of channels of a token, D.
      project: If true, a linear layer brings the grid to D channels.
      groups: Number of groups of consecutive examples, each with a canvas of its own.
      strict: If true, padding counts as the reference counts it; see `grid_mask`.
      dtype: Compute type.
    """

    network: nn.Module
    features: int = 768
    project: bool = False
    groups: int = 1
    strict: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Make the linear layers."""
        if self.project:
            self.output_proj = Linear(self.features, self.dtype)
        self.img_fc_0, self.img_fc_2 = (Linear(self.features, self.dtype) for _ in range(2))

    def __call__(self, video: jax.Array, clips: int, sizes: jax.Array | None = None, train: bool = False) -> Clips:
        """Encode videos.

        Args:
          video: Frames of all clips, `[B, C * F, H, W, 3]`; see `standardise`.
          clips: Number of clips, C.
          sizes: Height and width of each video's pictures, `[B, 2]`; None if they fill the frames.
          train: If true, stochastic depth is active.
        """
        standard = standardise(video, sizes)
        if isinstance(self.network, VideoSwin):
            grid = self.network(standard, train)
        elif isinstance(self.network, ResNet):
            grid = self.network(standard)[0]["layer4"]
        else:
            grid = self.network(standard)
        if self.project:
            grid = self.output_proj(grid)
        if sizes is None:
            return self.pool(grid, jnp.ones((1, 1, 1, 1, 1), bool), clips)
        counted = grid_mask(sizes, video.shape[2:4], grid.shape[2:4], self.groups, self.strict)
        return self.pool(grid, counted[:, None, :, :, None], clips)

    def pool(self, grid: jax.Array, counted: jax.Array, clips: int) -> Clips:
        """Average the grid of each clip and embed the clip.

        Args:
          grid: Grid features of all frames, `[B, C * F, h, w, D]`.
          counted: Cells that are averaged, bool, of a shape that broadcasts to `[B, C * F, h, w, 1]`.
          clips: Number of clips, C.
        """
        batch, frames, height, width, _ = grid.shape
        wide = jnp.promote_types(grid.dtype, jnp.float32)

        def total(values: jax.Array) -> jax.Array:
            return values.reshape(batch, clips, -1, values.shape[-1]).sum(2, dtype=wide)

        counted = jnp.broadcast_to(counted, (batch, frames, height, width, 1))
        tokens = (total(jnp.where(counted, grid, 0)) / jnp.maximum(total(counted), 1)).astype(grid.dtype)
        return Clips(tokens, l2_normalise(self.img_fc_2(nn.relu(self.img_fc_0(tokens)))))


class SnpS3(nn.Module):
    """Encoders and all heads; parameters exist for the heads that are used.

    Attributes:
      visual: Visual encoder.
      bert: Encoder of texts, and of texts with clips.
      num_answers: Number of answers, A.
      dropout: Dropout rate of the matching head.
      dtype: Compute type.
    """

    visual: VisualEncoder
    bert: Bert
    num_answers: int = 1500
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Make the heads."""
        self.similarity = MatchingHead(self.dropout, self.dtype)
        self.word_head = MaskedWordHead(self.dtype)
        self.text_word_head = MaskedWordHead(self.dtype)
        self.pair_head = Linear(2, self.dtype)
        self.classifier = Linear(self.num_answers, self.dtype)

    def clips(self, video: jax.Array, clips: int, sizes: jax.Array | None = None, train: bool = False) -> Clips:
        """Encode the clips of videos; see `VisualEncoder`."""
        return self.visual(video, clips, sizes, train)

    def match(self, ids: jax.Array, mask: jax.Array, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Return the level-2 scores `[N]` of texts `[N, L]` with clip tokens `[N, C, D]`."""
        return self.similarity(self.bert.pool_cross(ids, mask, tokens, train), train)

    def answer(self, ids: jax.Array, mask: jax.Array, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits `[N, A]` of all answers to questions `[N, L]` about clip tokens `[N, C, D]`."""
        return self.classifier(self.bert.pool_cross(ids, mask, tokens, train))

    def masked_words(self, hidden: jax.Array, *, with_video: bool) -> jax.Array:
        """Return logits `[..., V]` of masked words from outputs `[..., D]` of the text or cross encoder."""
        head = self.word_head if with_video else self.text_word_head
        return head(hidden, self.bert.word_embeddings)

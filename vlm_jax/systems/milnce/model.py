"""Network of MIL-NCE with two towers: S3D or Video Swin for video, and a bag of words for text.

Sources: Miech et al. 2020; antoine77340/MIL-NCE_HowTo100M, s3dg.py. Submodules carry the names of the released
checkpoints.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import Linear
from vlm_jax.models.s3d import S3D
from vlm_jax.models.swin3d import VideoSwin
from vlm_jax.ops.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN


class TextTower(nn.Module):
    """Text tower over a bag of words: frozen word table, linear, ReLU, maximum over words, linear.

    Padding (id 0) is looked up and takes part in the maximum like any word, as in the reference.

    Attributes:
      rows: Number of rows of the word table, padding included.
      word_dim: Size of a word vector.
      hidden_dim: Size of the hidden layer.
      embedding_dim: Size of the joint space, D.
      dtype: Compute type; the last layer computes in at least float32.
    """

    rows: int = 66250
    word_dim: int = 300
    hidden_dim: int = 2048
    embedding_dim: int = 512
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        """Embed word ids `[N, L]`: `[N, D]`."""
        table = self.variable(
            "frozen", "word_embd", lambda: jax.random.normal(self.make_rng("params"), (self.rows, self.word_dim))
        )
        x = nn.relu(Linear(self.hidden_dim, self.dtype, name="fc1")(table.value[words]))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return Linear(self.embedding_dim, wide, name="fc2")(x.max(-2).astype(wide))


class SwinTower(nn.Module):
    """Video tower with Video Swin instead of S3D: mean of the last map, and a linear layer.

    Attributes:
      network: Video Swin.
      embedding_dim: Size of the joint space, D.
    """

    network: VideoSwin
    embedding_dim: int = 512

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Embed clips `[B, T, H, W, 3]` in [0, 1] as S3D does: `video_embedding` `[B, D]`, `mixed_5c` `[B, C]`."""
        wide = jnp.promote_types(video.dtype, jnp.float32)
        # Its published weights take frames standardised by the mean and deviation of ImageNet.
        standard = (video.astype(wide) - jnp.array(IMAGENET_MEAN, wide)) / jnp.array(IMAGENET_DEVIATION, wide)
        pooled = self.network(standard, train).mean((1, 2, 3), dtype=wide)
        return {"video_embedding": Linear(self.embedding_dim, wide, name="fc")(pooled), "mixed_5c": pooled}


class MilNce(nn.Module):
    """Video tower and text tower."""

    video: S3D | SwinTower
    text: TextTower

    def __call__(self, video: jax.Array, words: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Embed clips `[B, T, H, W, 3]` in [0, 1] and word ids `[N, L]`: `[B, D]` and `[N, D]`."""
        return self.video(video, train)["video_embedding"], self.text(words)

"""CTRL: scores windows of a video against sentences and shifts their boundaries (Gao et al. 2017).

References: PaddlePaddle/models release/1.8, `PaddleCV/video/models/tall/tall_net.py`, which is the default here, and
jiyanggao/TALL, `ctrl_model.py`, by its options. Rows of every matrix are sentences, columns are windows ("clips").
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import Initializer, compute_in, kaiming_normal
from vlm_jax.ops.products import multiply

NORMALISATIONS = ("added", "floor")
"""How an embedding's length is kept from 0: 1e-12 added to its square, or the square's least value."""
EPSILON = 1e-12


class Ctrl(nn.Module):
    """Both projections and the comparison of every sentence with every window.

    Attributes:
      dim: D, of the embeddings.
      hidden_dim: H, of a pair.
      use_bias: Of all four layers.
      normalisation: One of `NORMALISATIONS`.
      projection_std: Of the projections' initial weights; not scaled by their inputs, as in both references.
      head_std: Of the comparison's initial weights; 0 for sqrt(2 / inputs).
      factored: Whether `compare` works out once a window and once a sentence what needs no pair.
      dtype: Of the arithmetic.
    """

    dim: int = 1024
    hidden_dim: int = 1000
    use_bias: bool = False
    normalisation: str = "added"
    projection_std: float = 1.0
    head_std: float = 0.0
    factored: bool = True
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        projection = nn.initializers.normal(self.projection_std)
        head = nn.initializers.normal(self.head_std) if self.head_std else kaiming_normal
        self.clip_projection = Weights(self.dim, self.use_bias, projection)
        self.sentence_projection = Weights(self.dim, self.use_bias, projection)
        self.hidden = Weights(self.hidden_dim, self.use_bias, head)
        self.output = Weights(3, self.use_bias, head)

    def __call__(self, visual: jax.Array, sentence: jax.Array) -> jax.Array:
        """Every sentence with every window: `[M, V]` and `[N, S]` -> `[N, M, 3]`, see `compare`."""
        return self.compare(self.embed_clips(visual), self.embed_sentences(sentence))

    def embed_clips(self, visual: jax.Array) -> jax.Array:
        """`[M, V]` (left context, own and right context features of a window) -> `[M, D]` of length 1."""
        return self._embed(visual, *self.clip_projection(visual.shape[-1]))

    def embed_sentences(self, sentence: jax.Array) -> jax.Array:
        """`[N, S]` -> `[N, D]` of length 1."""
        return self._embed(sentence, *self.sentence_projection(sentence.shape[-1]))

    def compare(self, clips: jax.Array, sentences: jax.Array) -> jax.Array:
        """Score, start offset and end offset of every pair.

        A pair is `[c * e, c + e, c, e]`, so the first layer's weight has four blocks of D rows; factored, two of its
        products are of windows alone and of sentences alone. The two forms differ by rounding.

        Args:
          clips: c, `[M, D]`.
          sentences: e, `[N, D]`.

        Returns:
          `[N, M, 3]`; offsets in the unit of those in training.
        """
        kernel, bias = self.hidden(4 * self.dim)
        clips, sentences, kernel, bias = compute_in(self.dtype, clips, sentences, kernel, bias)
        c, e = clips[None], sentences[:, None]
        product = c * e
        if self.factored:
            of_product, of_sum, of_clip, of_sentence = jnp.split(kernel, 4)
            hidden = multiply(product, of_product)
            hidden = hidden + (clips @ (of_sum + of_clip))[None] + (sentences @ (of_sum + of_sentence))[:, None]
        else:
            alone = [jnp.broadcast_to(x, product.shape) for x in (c, e)]
            hidden = multiply(jnp.concatenate([product, c + e, *alone], -1), kernel)
        hidden = nn.relu(hidden + bias)
        kernel, bias = self.output(self.hidden_dim)
        hidden, kernel, bias = compute_in(self.dtype, hidden, kernel, bias)
        out = multiply(hidden, kernel) + bias
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    def _embed(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        x, kernel, bias = compute_in(self.dtype, x, kernel, bias)
        out = x @ kernel + bias
        wide = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        square = jnp.square(wide).sum(-1, keepdims=True)
        square = square + EPSILON if self.normalisation == "added" else jnp.maximum(square, EPSILON)
        return (wide / jnp.sqrt(square)).astype(out.dtype)


class Weights(nn.Module):
    """A linear layer's kernel `[C, features]` and bias `[features]`, which is 0 where there is none."""

    features: int
    use_bias: bool
    kernel_init: Initializer

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """The weights for C inputs."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        if not self.use_bias:
            return kernel, jnp.zeros((), kernel.dtype)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))

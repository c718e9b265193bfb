"""Network of CTRL, which scores windows of a video against sentences and shifts their boundaries (Gao et al. 2017).

References: PaddlePaddle/models release/1.8, `PaddleCV/video/models/tall/tall_net.py` (the defaults), and
jiyanggao/TALL, `ctrl_model.py` (by options). Rows of every matrix are sentences, columns are windows ("clips").
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlm_jax.models.layers import Initializer, compute_in, kaiming_normal
from vlm_jax.ops.products import multiply

NORMALISATIONS = ("added", "floor")
"""L2 normalisations of embeddings: `added` adds 1e-12 to the squared length, `floor` raises it to at least 1e-12."""
EPSILON = 1e-12


class Ctrl(nn.Module):
    """Projections of windows and sentences, and the comparison of every sentence with every window.

    Attributes:
      dim: Size of the embeddings, D.
      hidden_dim: Size of the hidden layer over a pair.
      use_bias: If true, all four layers have a bias.
      normalisation: One of `NORMALISATIONS`.
      projection_std: Standard deviation of the projections' initial weights, independent of the number of inputs as in
        both references.
      head_std: Standard deviation of the comparison's initial weights; 0 for sqrt(2 / inputs).
      factored: If true, `compare` computes the terms of one window or one sentence once, not once per pair.
      dtype: Compute type.
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
        """Compare every sentence `[N, S]` with every window `[M, V]`: `[N, M, 3]`, see `compare`."""
        return self.compare(self.embed_clips(visual), self.embed_sentences(sentence))

    def embed_clips(self, visual: jax.Array) -> jax.Array:
        """Embed windows `[M, V]` (features of left context, window and right context): `[M, D]`, rows of length 1."""
        return self._embed(visual, *self.clip_projection(visual.shape[-1]))

    def embed_sentences(self, sentence: jax.Array) -> jax.Array:
        """Embed sentences `[N, S]`: `[N, D]`, rows of length 1."""
        return self._embed(sentence, *self.sentence_projection(sentence.shape[-1]))

    def compare(self, clips: jax.Array, sentences: jax.Array) -> jax.Array:
        """Return score, start offset and end offset of every pair.

        The input for a pair is `[c * e, c + e, c, e]`, so the hidden layer's kernel has four blocks of D rows. In the
        factored form, the terms of c alone and of e alone are computed once per window and once per sentence. The two
        forms differ by rounding.

        Args:
          clips: Embeddings c of windows, `[M, D]`.
          sentences: Embeddings e of sentences, `[N, D]`.

        Returns:
          `[N, M, 3]`, at least float32; offsets have the unit of the training targets.
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
    """Parameters of a linear layer: kernel `[C, features]` and bias `[features]`, the scalar 0 without `use_bias`."""

    features: int
    use_bias: bool
    kernel_init: Initializer

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """Return kernel and bias for C = `inputs` inputs."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        if not self.use_bias:
            return kernel, jnp.zeros((), kernel.dtype)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))

"""Scores of texts and videos at both levels: of all pairs, in blocks over all devices.

Level 1 compares embeddings; level 2 passes a text and the clips of a video through the cross encoder
(alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp).
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlm_jax.train.batches import predict_batches
from vlm_jax.train.scoring import Score, score_matrix
from vlm_jax.types import Batch, Outputs, Variables

Encoders = Mapping[str, Callable[[Variables, Batch], Outputs]]
"""Functions of the task by name: `video`, `text`, `match`, `answer` and `choose`."""
EMBEDDINGS = 256
"""Largest number of texts that are encoded, and of texts and videos whose embeddings are compared, at the same time."""


def level_1(variables: Variables, texts: jax.Array, clips: jax.Array) -> jax.Array:
    """Return the level-1 scores `[R, V]` of texts `[R, D]` and videos `[V, C, D]`: log-sum-exp over clips."""
    del variables
    products = jnp.einsum("rd,vcd->rvc", texts, clips, precision="highest")
    return jax.scipy.special.logsumexp(products, axis=-1)


def level_2(encoders: Encoders) -> Score:
    """Return the function that scores `text` and `text_mask` `[R, L]` with clip tokens `[V, C, D]`: `[R, V]`."""

    def score(variables: Variables, texts: Mapping[str, jax.Array], tokens: jax.Array) -> jax.Array:
        rows, videos = len(texts["text"]), len(tokens)

        def paired(array: jax.Array) -> jax.Array:
            return array.reshape(rows * videos, *array.shape[2:])

        batch = {
            name: paired(jnp.broadcast_to(array[:, None], (rows, videos, *array.shape[1:])))
            for name, array in texts.items()
        }
        batch["tokens"] = paired(jnp.broadcast_to(tokens, (rows, *tokens.shape)))
        return encoders["match"](variables, batch)["scores"].reshape(rows, videos)

    return score


def encode_texts(
    encode: Callable[[Variables, Batch], Outputs],
    variables: Variables,
    texts: Mapping[str, np.ndarray],
    mesh: Mesh | None = None,
    batch_size: int = EMBEDDINGS,
) -> np.ndarray:
    """Return the embeddings of texts, `[N, D]`, on every process; all processes of the mesh call it.

    Args:
      encode: Text encoder.
      variables: Variables of the model.
      texts: `text` and `text_mask`, int32 `[N, L]`, the same on every process.
      mesh: Devices; without a mesh, the default device of this process.
      batch_size: Number of texts per batch; rounded up to a multiple of the data shards.
    """
    count = len(texts["text"])
    shards = mesh.shape["data"] if mesh else 1
    batch_size = -(-min(batch_size, count) // shards) * shards
    # Every process supplies its own part of a batch.
    own = batch_size // jax.process_count() if mesh else batch_size
    first = own * jax.process_index() if mesh else 0

    def batches() -> Iterator[Batch]:
        for begin in range(first, -(-count // batch_size) * batch_size, batch_size):
            index = begin + np.arange(own, dtype=np.int32)
            rows = np.minimum(index, count - 1)
            marks = {"mask": (index < count).astype(np.int32), "index": index}
            yield {name: array[rows] for name, array in texts.items()} | marks

    found = predict_batches(encode, variables, batches(), mesh=mesh, gather=True)
    parts = [(index, outputs["text"]) for index, outputs in found]
    embeddings = np.empty((count, parts[0][1].shape[1]), parts[0][1].dtype)
    for index, part in parts:
        embeddings[index] = part
    return embeddings


def score_pairs(
    encoders: Encoders,
    score: Score | None,
    variables: Variables,
    texts: Mapping[str, np.ndarray],
    videos: Outputs,
    mesh: Mesh | None = None,
    *,
    row_block: int,
    column_block: int,
) -> dict[str, np.ndarray | None]:
    """Return `level_1` and, if it is asked for, `level_2`: the scores of all texts and videos, `[N, M]`, on process 0.

    Args:
      encoders: Functions of the task.
      score: Function of `level_2`, compiled once per object; None leaves level 2 out.
      variables: Variables of the model.
      texts: `text` and `text_mask`, int32 `[N, L]`.
      videos: `clips` and `tokens` of the videos, `[M, C, D]`.
      mesh: Devices.
      row_block: Number of texts that level 2 compares at the same time.
      column_block: Number of videos that it compares them with.
    """
    embeddings = encode_texts(encoders["text"], variables, texts, mesh)
    blocks = {"row_block": min(EMBEDDINGS, len(embeddings)), "column_block": min(EMBEDDINGS, len(videos["clips"]))}
    found = {"level_1": score_matrix(level_1, {}, embeddings, videos["clips"], mesh, **blocks)}
    if score is not None:
        blocks = {"row_block": min(row_block, len(embeddings)), "column_block": min(column_block, len(videos["clips"]))}
        found["level_2"] = score_matrix(score, variables, dict(texts), videos["tokens"], mesh, **blocks)
    return found

"""MIL-NCE's evaluation records and what the model reads from them."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data import images
from vlm_jax.data.milnce import SECOND, SECONDS
from vlm_jax.data.pipeline import EvaluationPipeline, Split
from vlm_jax.data.records import check_protocol
from vlm_jax.text import word_list
from vlm_jax.types import DataShard

RETRIEVAL_FEATURES = tfds.features.FeaturesDict(
    {
        "video_id": tfds.features.Text(),
        "text": tfds.features.Text(),
        "start": SECOND,
        "end": SECOND,
        "clip_starts": SECONDS,
        "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="png")),
    }
)
"""An item of a retrieval set: the frames of its W clips of T frames, one clip after the other."""


def retrieval_pipeline(
    directory: str,
    split_name: str,
    windows: int,
    num_frames: int,
    fps: int,
    size: int,
    max_words: int,
    vocabulary: Mapping[str, int],
    shard: DataShard,
) -> EvaluationPipeline:
    """Batches of `video` uint8 `[B, W, T, S, S, 3]`, `text` int32 `[B, L]`, and what names an item.

    Raises:
      DataError: where the records were prepared for another protocol.
    """
    split = Split(directory, split_name)
    wanted = {"kind": "milnce_retrieval", "windows": windows, "num_frames": num_frames, "fps": fps, "size": size}
    check_protocol(directory, split.protocol, wanted)

    def encode(text: bytes) -> np.ndarray:
        return word_list.encode(text.decode(), vocabulary, max_words)

    def decode(serialised: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        del seed
        record = RETRIEVAL_FEATURES.deserialize_example(serialised, decoders={"frames": tfds.decode.SkipDecoding()})
        frames = images.decode_pngs(record["frames"])
        ids = tf.numpy_function(encode, [record["text"]], tf.int32)
        return {
            "video": tf.reshape(frames, [windows, num_frames, size, size, 3]),
            "text": tf.ensure_shape(ids, [max_words]),
        }

    return EvaluationPipeline(split, shard, decode)


def retrieval_items(directory: str, split_name: str) -> list[dict[str, object]]:
    """What each item of a retrieval set is, in order: `video_id`, `text`, `start`, `end`, `clip_starts`."""
    split = Split(directory, split_name)
    items = []
    for serialised in tf.data.TFRecordDataset([str(path) for path in split.paths]):
        record = RETRIEVAL_FEATURES.deserialize_example(serialised, decoders={"frames": tfds.decode.SkipDecoding()})
        items.append(
            {
                "video_id": record["video_id"].numpy().decode(),
                "text": record["text"].numpy().decode(),
                "start": float(record["start"]),
                "end": float(record["end"]),
                "clip_starts": record["clip_starts"].numpy().tolist(),
            }
        )
    return items

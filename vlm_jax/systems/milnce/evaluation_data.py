"""Evaluation records of MIL-NCE and the evaluation pipelines."""

import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data import images
from vlm_jax.data.pipeline import EvaluationPipeline
from vlm_jax.data.protocol import check_protocol
from vlm_jax.data.record_examples import RecordExamples, RecordSource, Split, read_features
from vlm_jax.systems.milnce.data import SECOND, SECONDS
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
"""Features of an item of a retrieval set; `frames` holds its W clips of T frames, one after the other."""

CLASSIFICATION_FEATURES = tfds.features.FeaturesDict(
    {
        "video_path": tfds.features.Text(),
        "label": tfds.features.Text(),
        "splits": tfds.features.Sequence(np.int32),
        "windows": tfds.features.Sequence(np.int32),
        "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="png")),
    }
)
"""Features of a video of a classification set. `splits` holds its code in each split (1 train, 2 test, 0 unused),
`frames` every frame that one of its W windows shows, and `windows` the frame numbers of the windows, one after the
other, -1 for black."""


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
    frame_order: str = "filmed",
    lower_case: bool = False,
) -> EvaluationPipeline:
    """Return batches of `video` uint8 `[B, W, T, S, S, 3]` and `text` int32 `[B, L]`.

    Args:
      directory: Folder of the data set.
      split_name: Name of the split.
      windows: Number of clips per item, W.
      num_frames: Number of frames per clip, T.
      fps: Frames per second.
      size: Height and width of a frame, S, pixels.
      max_words: Number of words per caption, L.
      vocabulary: Ids by word.
      shard: Part of every batch that this process supplies.
      frame_order: Order of the frames: filmed, shuffled or reversed.
      lower_case: If true, captions are lower-cased before their words are looked up.

    Raises:
      DataError: If the records were prepared for another protocol.
    """
    split = Split(directory, split_name)
    wanted = {"kind": "milnce_retrieval", "windows": windows, "num_frames": num_frames, "fps": fps, "size": size}
    check_protocol(directory, split.protocol, wanted)

    def encode(text: bytes) -> np.ndarray:
        return word_list.encode(text.decode(), vocabulary, max_words, lower=lower_case)

    def decode(serialised: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        del seed
        record = RETRIEVAL_FEATURES.deserialize_example(serialised, decoders={"frames": tfds.decode.SkipDecoding()})
        video = tf.reshape(images.decode_pngs(record["frames"]), [windows, num_frames, size, size, 3])
        order = tf.numpy_function(
            lambda item, text: frame_numbers(frame_order, windows, num_frames, item + text),
            [record["video_id"], record["text"]],
            tf.int64,
        )
        ids = tf.numpy_function(encode, [record["text"]], tf.int32)
        return {
            "video": tf.gather(video, tf.ensure_shape(order, [windows, num_frames]), axis=1, batch_dims=1),
            "text": tf.ensure_shape(ids, [max_words]),
        }

    return EvaluationPipeline(RecordExamples(RecordSource(split, decode)), shard)


def frame_numbers(order: str, windows: int, num_frames: int, item: bytes) -> np.ndarray:
    """Return the order of the frames in an item's W windows, int64 `[W, T]`; `item` seeds the order 'shuffled'."""
    numbers = np.tile(np.arange(num_frames), (windows, 1))
    if order == "shuffled":
        return np.random.default_rng(zlib.crc32(item)).permuted(numbers, axis=1)
    return numbers[:, ::-1] if order == "reversed" else numbers


def retrieval_items(directory: str, split_name: str) -> list[dict[str, object]]:
    """Return `video_id`, `text`, `start`, `end` and `clip_starts` of the items of a retrieval set, in order.

    Times are in seconds. The frames, nearly all bytes of a set, are not read.
    """
    features = {key: RETRIEVAL_FEATURES[key] for key in RETRIEVAL_FEATURES if key != "frames"}
    return [
        {
            "video_id": record["video_id"].decode(),
            "text": record["text"].decode(),
            "start": float(record["start"]),
            "end": float(record["end"]),
            "clip_starts": record["clip_starts"].tolist(),
        }
        for record in read_features(Split(directory, split_name), features)
    ]


def classification_pipeline(
    directory: str, split_name: str, windows: int, num_frames: int, size: int, shard: DataShard
) -> EvaluationPipeline:
    """Return batches of `video` uint8 `[B, W, T, S, S, 3]`, `label` int32 `[B]` and `splits` int32 `[B, 3]`.

    Labels number all classes of the data set in alphabetical order.

    Raises:
      DataError: If the records were prepared for another protocol.
    """
    split = Split(directory, split_name)
    wanted = {"kind": "milnce_classification", "windows": windows, "num_frames": num_frames, "size": size}
    check_protocol(directory, split.protocol, wanted)
    classes = tf.constant(split.protocol["classes"])

    def decode(serialised: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        del seed
        record = CLASSIFICATION_FEATURES.deserialize_example(
            serialised, decoders={"frames": tfds.decode.SkipDecoding()}
        )
        frames = images.decode_pngs(record["frames"])
        # The black frame, number -1, comes first: numbers are increased by 1 below.
        frames = tf.concat([tf.zeros([1, size, size, 3], tf.uint8), tf.ensure_shape(frames, [None, size, size, 3])], 0)
        return {
            "video": tf.gather(frames, tf.reshape(record["windows"] + 1, [windows, num_frames])),
            "label": tf.argmax(classes == record["label"], output_type=tf.int32),
            "splits": tf.ensure_shape(record["splits"], [3]),
        }

    return EvaluationPipeline(RecordExamples(RecordSource(split, decode)), shard)

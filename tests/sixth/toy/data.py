"""The toy's records: written by `records`, read by the shared pipeline."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from vlm_jax.systems.toy.batches import example

from vlm_jax.data import records
from vlm_jax.data.pipeline import EvaluationPipeline, TrainPipeline
from vlm_jax.data.record_examples import RecordExamples, RecordSource, Split

FEATURES = tfds.features.FeaturesDict(
    {name: tfds.features.Tensor(shape=(size,), dtype=np.float32) for name, size in (("x", 4), ("y", 2))}
)


def write(directory, split, numbers):
    """Write examples as one shard of a split."""
    path = records.shard_path(Path(directory), "toy", split, 0, 1)
    records.write_shard(
        path, FEATURES, (records.Record(example(number), group) for group, number in enumerate(numbers))
    )
    records.finalize(Path(directory), "toy", split, 1, FEATURES, {"kind": "toy"})


def train_pipeline(directory, shard):
    return TrainPipeline(examples(directory, "train"), shard, block=16)


def evaluation_pipeline(directory, shard):
    return EvaluationPipeline(examples(directory, "held"), shard)


def examples(directory, split):
    return RecordExamples(RecordSource(Split(directory, split), decode))


def decode(record, seed):
    del seed
    return FEATURES.deserialize_example(record)

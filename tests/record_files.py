"""Small record data sets for tests of the input pipeline."""

import itertools

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data import records
from vlm_jax.data.record_examples import Split
from vlm_jax.data.records import Record

FEATURES = tfds.features.FeaturesDict({"id": np.int64, "group": np.int64})


def decode(serialised, seed):
    record = FEATURES.deserialize_example(serialised)
    noise = tf.random.stateless_uniform([3], tf.stack([seed, tf.constant(0, tf.int64)]))
    return {"id": record["id"], "group": record["group"], "noise": noise}


def make_split(directory, groups, records_per_group=1, weights=None):
    """Write shards with the given numbers of groups and return their split; ids and groups count through all shards."""
    number = itertools.count()
    for shard, count in enumerate(groups):
        first = sum(groups[:shard])
        items = [
            Record({"id": next(number), "group": first + group}, group, weights[place] if weights else 1.0)
            for group in range(count)
            for place in range(records_per_group)
        ]
        records.write_shard(records.shard_path(directory, "made", "train", shard, len(groups)), FEATURES, items)
    records.finalize(directory, "made", "train", len(groups), FEATURES, {})
    return Split(directory, "train")


def taken(made, batches):
    return list(itertools.islice(made, batches))


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, two[name])

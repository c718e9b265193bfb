"""Features of whole clips in host memory: read once from TFRecords, shared by all questions about a clip."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data.protocol import check_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.data.records import find_damage
from vlm_jax.errors import DataError

KIND = "clip_features"
CLIPS = "clips"
"""The split that holds all clips of a data set."""
DTYPES = ("float32", "bfloat16", "float16")


def numpy_dtype(name: str) -> np.dtype:
    """The type of a name of `DTYPES`.

    Raises:
      DataError: for another one.
    """
    if name not in DTYPES:
        raise DataError(f"type of features: {name!r} is not one of {', '.join(DTYPES)}")
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


def clip_features(dtype: str = "float32") -> tfds.features.FeaturesDict:
    """A clip: its name, its features `[T, C]`, and its seconds, 0 where they are not known."""
    features = tensor(None, None, dtype=dtype)
    return tfds.features.FeaturesDict({"clip": tfds.features.Text(), "features": features, "duration": tensor()})


def tensor(*shape: int | None, dtype: str = "float64") -> tfds.features.Tensor:
    """Numbers stored as bytes: the only form for several unknown sizes, and the only one that keeps float64."""
    kind = tf.as_dtype(dtype).as_numpy_dtype
    return tfds.features.Tensor(shape=shape, dtype=kind, encoding="bytes")


def read_records(split: Split, features: tfds.features.FeaturesDict) -> Iterator[dict[str, np.ndarray]]:
    """Every record of a split, in order.

    Raises:
      DataError: naming the file that is missing or damaged.
    """
    places = split.places()
    try:
        for serialised in tf.data.TFRecordDataset([str(path) for path in split.paths]):
            yield features.deserialize_example_np(serialised.numpy())
    except tf.errors.OpError as error:
        raise DataError(find_damage(places) or f"data {split.directory}: {error}") from None


class FeatureStore:
    """The clips of a data set by name, each read when it is first asked for and kept.

    Args:
      directory: Made by data_prep.
      wanted: What its protocol has to say, such as `feature_dim`.
      dtype: Of the arrays that are kept and given, one of `DTYPES`.

    Raises:
      DataError: where there is no such data set, or it was made otherwise.
    """

    def __init__(self, directory: str, wanted: Mapping[str, Any], dtype: str = "float32") -> None:
        self.directory, self.dtype = directory, numpy_dtype(dtype)
        self._split = Split(directory, CLIPS)
        check_protocol(directory, self._split.protocol, {"kind": KIND, **wanted})
        self._clips: dict[str, np.ndarray] = {}
        self._durations: dict[str, float] = {}

    def load(self, clips: Iterable[str]) -> None:
        """Reads some clips; raises DataError as `read` does, and for clips that are not there."""
        missing = sorted(self.read(clips))
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise DataError(f"data {self.directory}: no features of clip {missing[0]}{more}, which questions are about")

    def read(self, clips: Iterable[str]) -> set[str]:
        """Reads those of some clips that are not in memory yet, in one pass over the files.

        Returns:
          The clips that are not there.

        Raises:
          DataError: for features that are not finite.
        """
        missing = set(clips) - self._clips.keys()
        if not missing:
            return missing
        for record in read_records(self._split, clip_features(self._split.protocol["dtype"])):
            clip = record["clip"].decode()
            if clip not in missing:
                continue
            features = record["features"].astype(self.dtype, copy=False)
            if not np.isfinite(features.astype(np.float32, copy=False)).all():
                raise DataError(f"data {self.directory}: clip {clip}: its features hold numbers that are not finite")
            self._clips[clip], self._durations[clip] = features, float(record["duration"])
            missing.remove(clip)
        return missing

    def __getitem__(self, clip: str) -> np.ndarray:
        """The features of a clip that was loaded: `[T, C]`."""
        return self._clips[clip]

    def length(self, clip: str) -> int:
        """T."""
        return len(self._clips[clip])

    def duration(self, clip: str) -> float:
        """Return the seconds of a clip, those that its rows begin in where nothing better is known."""
        stated = self._split.protocol
        return self._durations[clip] or self.length(clip) * stated["feature_stride"] / stated["fps"]

"""Features of whole clips in host memory, read once from TFRecords and shared by all questions about a clip."""

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
"""Name of the split that holds all clips of a data set."""
DTYPES = ("float32", "bfloat16", "float16")


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy type for a name of `DTYPES`.

    Raises:
      DataError: for any other name.
    """
    if name not in DTYPES:
        raise DataError(f"type of features: {name!r} is not one of {', '.join(DTYPES)}")
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


def clip_features(dtype: str = "float32") -> tfds.features.FeaturesDict:
    """Return the TFDS features of a clip: its name, its features `[T, C]` and its duration in seconds (0: unknown)."""
    features = tensor(None, None, dtype=dtype)
    return tfds.features.FeaturesDict({"clip": tfds.features.Text(), "features": features, "duration": tensor()})


def tensor(*shape: int | None, dtype: str = "float64") -> tfds.features.Tensor:
    """Return a TFDS feature of numbers stored as bytes.

    Only this encoding allows several unknown sizes, and only this one keeps float64.
    """
    kind = tf.as_dtype(dtype).as_numpy_dtype
    return tfds.features.Tensor(shape=shape, dtype=kind, encoding="bytes")


def read_records(split: Split, features: tfds.features.FeaturesDict) -> Iterator[dict[str, np.ndarray]]:
    """Yield every record of a split, in order.

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
    """Features of a data set's clips by name; a clip that was read stays in memory.

    Args:
      directory: Folder made by data_prep.
      wanted: Values that its protocol must have, such as `feature_dim`.
      dtype: Type of the arrays in memory, one of `DTYPES`.

    Raises:
      DataError: if there is no such data set, or its protocol has other values.
    """

    def __init__(self, directory: str, wanted: Mapping[str, Any], dtype: str = "float32") -> None:
        self.directory, self.dtype = directory, numpy_dtype(dtype)
        self._split = Split(directory, CLIPS)
        check_protocol(directory, self._split.protocol, {"kind": KIND, **wanted})
        self._clips: dict[str, np.ndarray] = {}
        self._durations: dict[str, float] = {}

    def load(self, clips: Iterable[str]) -> None:
        """Read some clips into memory.

        Raises:
          DataError: if a clip is missing or its features are not finite.
        """
        missing = sorted(self.read(clips))
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise DataError(f"data {self.directory}: no features of clip {missing[0]}{more}, which questions are about")

    def read(self, clips: Iterable[str]) -> set[str]:
        """Read those of some clips that are not in memory yet, in one pass over the files.

        Returns:
          Names of the clips that the data set does not have.

        Raises:
          DataError: if features are not finite, or a file is missing or damaged.
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
        """Return the features of a clip in memory: `[T, C]`."""
        return self._clips[clip]

    def length(self, clip: str) -> int:
        """Return the number of feature rows of a clip in memory, T."""
        return len(self._clips[clip])

    def duration(self, clip: str) -> float:
        """Return the duration of a clip in memory, in seconds.

        If it is not known, it is the number of rows times their stride.
        """
        stated = self._split.protocol
        return self._durations[clip] or self.length(clip) * stated["feature_stride"] / stated["fps"]

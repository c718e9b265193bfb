"""Pipeline of synthetic batches for smoke runs and benchmarks, without files and without TensorFlow."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from vlm_jax.data.pipeline import StatefulPipeline
from vlm_jax.types import DataShard


class ArraySpec(Protocol):
    """Shape and type of an array, such as a `jax.ShapeDtypeStruct`."""

    shape: tuple[int, ...]
    dtype: np.dtype


class SyntheticPipeline(StatefulPipeline):
    """Endless noise in the shapes of a training batch; batch n is the same on any number of processes.

    uint8 values are uniform over their range, other integers over 0 to 9, floats over [0, 1).

    Args:
      specs: Shape and type of every array of the global batch, by name.
      shard: Part of every batch that this process supplies.
    """

    def __init__(self, specs: Mapping[str, ArraySpec], shard: DataShard) -> None:
        super().__init__(shard)
        self.specs = specs

    def epoch_examples(self) -> int:
        """Return 0, because noise has no epochs."""
        return 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches from the current position on."""
        local = self.shard.local_batch_size
        rows = slice(self.shard.index * local, (self.shard.index + 1) * local)
        while True:
            rng = np.random.default_rng((self.shard.seed, self._position))
            batch = {name: _noise(rng, spec)[rows] for name, spec in sorted(self.specs.items())}
            self._position += self.shard.batch_size
            yield batch


def _noise(rng: np.random.Generator, spec: ArraySpec) -> np.ndarray:
    if spec.dtype == np.bool_:
        return rng.random(spec.shape) < 0.5
    if np.issubdtype(spec.dtype, np.floating):
        return rng.random(spec.shape, np.float32).astype(spec.dtype)
    return rng.integers(0, 256 if spec.dtype == np.uint8 else 10, spec.shape).astype(spec.dtype)

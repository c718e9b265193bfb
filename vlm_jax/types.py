"""Types that every part of the library may use; numpy only.

Shape letters in docstrings:

    B  examples of the global batch      T  frames or positions in time     K  candidate captions of a video
    N  sentences, items or rows          H, W  height and width in pixels   L  words
    C  channels                          D  size of an embedding            G  groups of consecutive examples
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PyTree = Any
Batch = Mapping[str, Any]
"""Arrays by name, each with the batch axis first."""
Outputs = Mapping[str, Any]
Variables = Mapping[str, Any]
"""Flax variables: `params` and the collections of the model state."""
Params = Mapping[str, Any]
ModelState = Mapping[str, Any]
"""Collections of variables that are not trained, such as `batch_stats` and `frozen`."""


@dataclass(frozen=True)
class DataShard:
    """Part of every global batch that one process supplies.

    Attributes:
      index: Index of the process, from 0.
      count: Number of processes.
      batch_size: Number of examples in the global batch, B.
      seed: Seed of the data order and the augmentations.
    """

    index: int = 0
    count: int = 1
    batch_size: int = 1
    seed: int = 0

    @property
    def local_batch_size(self) -> int:
        """Return the number of examples that this process supplies to a batch."""
        return self.batch_size // self.count


class Pipeline(Protocol):
    """Stream of numpy batches whose position is one integer."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield this process's part of every batch, from the current position on."""

    def epoch_examples(self) -> int:
        """Return the number of examples in one pass over the data, over all processes; 0 for data without an end."""

    def position(self) -> int:
        """Return the number of examples yielded so far, over all processes."""

    def restore(self, position: int) -> None:
        """Make the next iteration begin after `position` examples."""


class Sink(Protocol):
    """Writer of evaluation outputs that are larger than memory, one part per batch and process."""

    def resume(self, evaluation: Mapping[str, Any]) -> int:
        """Return the number of batches, from the first on, that this process has already written.

        Args:
          evaluation: Description of the evaluation in JSON values; parts of another evaluation are rejected.
        """

    def write(self, number: int, index: np.ndarray, outputs: Outputs) -> None:
        """Write this process's part of batch `number`, completely or not at all.

        A part that has already been written stays.

        Args:
          number: Number of the batch, from 0.
          index: Indices of the items, `[n]`.
          outputs: Outputs of the items, `[n, ...]` each, or packed rows beside their counts (`train.sinks.pack`).
        """

    def finish(self, total: int, counts: str = "") -> Outputs:
        """Merge the parts of all processes and return the outputs of items 0 to `total` - 1 in order, memory-mapped.

        All processes call it after their last batch.

        Args:
          total: Number of items.
          counts: Name of the output that holds the number of rows of each item, if outputs are packed.
        """

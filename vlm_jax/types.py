"""Types that every part may use; numpy only.

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
"""Arrays by name, each with the examples first."""
Outputs = Mapping[str, Any]
Variables = Mapping[str, Any]
"""Flax variables: `params` and the collections of the model state beside it."""
Params = Mapping[str, Any]
ModelState = Mapping[str, Any]
"""What is not trained but has memory: `batch_stats`, `frozen`, ..."""


@dataclass(frozen=True)
class DataShard:
    """The part of every global batch that one process supplies.

    Attributes:
      index: This process, from 0.
      count: Number of processes.
      batch_size: Examples of the global batch.
      seed: Of the data order and the augmentations.
    """

    index: int = 0
    count: int = 1
    batch_size: int = 1
    seed: int = 0

    @property
    def local_batch_size(self) -> int:
        """Examples that this process supplies."""
        return self.batch_size // self.count


class Pipeline(Protocol):
    """A stream of numpy batches with a place that one integer describes."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches of this process's part, from the current position on."""

    def epoch_examples(self) -> int:
        """Examples of one pass over the data, over all processes; 0 where there is no such thing."""

    def position(self) -> int:
        """Examples handed out so far, counted over all processes."""

    def restore(self, position: int) -> None:
        """Makes the next iteration begin after that many examples."""


class Sink(Protocol):
    """Where an evaluation writes outputs that are larger than memory, batch by batch and process by process."""

    def resume(self, evaluation: Mapping[str, Any]) -> int:
        """Return how many batches, from the first, this process has written already.

        Args:
          evaluation: What is evaluated and how, as JSON values; parts that another evaluation wrote are an error.
        """

    def write(self, number: int, index: np.ndarray, outputs: Outputs) -> None:
        """Write this process's part of batch `number`, completely or not at all: items `index` [n], outputs [n, ...].

        A part that has been written already stays.
        """

    def finish(self, total: int) -> Outputs:
        """Merge the parts of all processes and return the outputs of items 0 to `total` - 1, in order, not in memory.

        All processes call it after their last batch.
        """

"""Examples of a linear map, and batches of them without any file."""

import numpy as np

TRUTH = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


def example(number):
    """Return one example, which its number alone decides: `x` `[4]` and `y` `[2]`."""
    x = np.random.default_rng(number).normal(size=4).astype(np.float32)
    return {"x": x, "y": x @ TRUTH}


class Batches:
    """Batch n depends on n alone; `items` makes it finite, padded and masked."""

    def __init__(self, shard, items=None, nan_at=None):
        self.shard, self.items, self.nan_at = shard, items, nan_at
        self.at = 0

    def epoch_examples(self):
        return self.items or 10 * self.shard.batch_size

    def position(self):
        return self.at

    def restore(self, position):
        self.at = position

    def __iter__(self):
        local = self.shard.local_batch_size
        while not self.items or self.at < self.items:
            index = self.at + self.shard.index * local + np.arange(local)
            examples = [example(number) for number in index]
            batch = {name: np.stack([each[name] for each in examples]) for name in ("x", "y")}
            if self.at == self.nan_at:
                batch["x"][:] = np.nan
            self.at += self.shard.batch_size
            extra = {"mask": (index < self.items).astype(np.int32), "index": index} if self.items else {}
            yield {**batch, **extra}

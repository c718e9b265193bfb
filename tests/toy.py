"""A sixth system in sixty lines: a linear map, its batches, and an evaluator. The loop needs to know no more of it."""

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.config import base_config
from vlm_jax.task import Aux, Evaluator, Task

TRUTH = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


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
            x = np.stack([np.random.default_rng(i).normal(size=4) for i in index]).astype(np.float32)
            if self.at == self.nan_at:
                x[:] = np.nan
            self.at += self.shard.batch_size
            extra = {"mask": (index < self.items).astype(np.int32), "index": index} if self.items else {}
            yield {"x": x, "y": x @ TRUTH, **extra}


def make_task(config, nan_at=None):
    specs = {name: jax.ShapeDtypeStruct((config.batch_size, n), np.float32) for name, n in (("x", 4), ("y", 2))}

    def loss_fn(params, model_state, batch, key):
        error = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
        noise = 1e-3 * jax.random.normal(key, error.shape)
        seen = {"stats": {"seen": model_state["stats"]["seen"] + batch["x"].shape[0]}}
        return jnp.mean((error + noise) ** 2), Aux({"bias_norm": jnp.linalg.norm(params["bias"])}, seen)

    def init(key, batch):
        params = {"kernel": jax.random.normal(key, (4, 2)), "bias": jnp.zeros(2)}
        return {"params": params, "stats": {"seen": jnp.zeros((), jnp.int32)}}

    def predict(variables, batch):
        return {"error": ((batch["x"] @ variables["params"]["kernel"] - batch["y"]) ** 2).sum(-1)}

    evaluator = Evaluator(
        data=lambda shard: Batches(shard, items=21),
        predict_fn=predict,
        summarize=lambda outputs: {"error": float(outputs["error"].mean()), "items": float(len(outputs["error"]))},
        protocol={"task": "regression"},
    )
    return Task("toy", {"": specs}, init, loss_fn, lambda shard: Batches(shard, nan_at=nan_at), {"held": evaluator}, {})


def make_config(**overrides):
    config = base_config()
    config.task, config.batch_size, config.steps, config.log_every = "toy", 8, 6, 1
    config.schedule.learning_rate = 0.05
    config.checkpoint.every_steps = 3
    for key, value in overrides.items():
        *parents, leaf = key.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return config.lock()

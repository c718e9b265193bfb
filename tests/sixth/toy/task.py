"""A linear map, with a count of the examples that it has seen."""

import jax
import jax.numpy as jnp
import numpy as np
from vlm_jax.systems.toy.batches import Batches

from vlm_jax.task import Aux, Evaluator, Task


def make_task(config, nan_at=None):
    """Build the task; `nan_at` is the position of a batch that is not finite."""
    inputs, outputs, directory = config.model.inputs, config.model.outputs, config.data.directory
    specs = {
        name: jax.ShapeDtypeStruct((config.batch_size, size), np.float32)
        for name, size in (("x", inputs), ("y", outputs))
    }

    def loss_fn(params, model_state, batch, key):
        error = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
        noise = 1e-3 * jax.random.normal(key, error.shape)
        seen = {"stats": {"seen": model_state["stats"]["seen"] + batch["x"].shape[0]}}
        return jnp.mean((error + noise) ** 2), Aux({"bias_norm": jnp.linalg.norm(params["bias"])}, seen)

    def init(key, batch):
        params = {"kernel": jax.random.normal(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}
        return {"params": params, "stats": {"seen": jnp.zeros((), jnp.int32)}}

    def encode(variables, batch):
        return {"y": batch["x"] @ variables["params"]["kernel"] + variables["params"]["bias"]}

    def train_data(shard):
        if not directory:
            return Batches(shard, nan_at=nan_at)
        from vlm_jax.systems.toy import data

        return data.train_pipeline(directory, shard)

    def held_data(shard):
        if not directory:
            return Batches(shard, items=21)
        from vlm_jax.systems.toy import data

        return data.evaluation_pipeline(directory, shard)

    evaluator = Evaluator(
        data=held_data,
        predict_fn=lambda variables, batch: {"error": ((encode(variables, batch)["y"] - batch["y"]) ** 2).sum(-1)},
        summarize=lambda outputs: {"error": float(outputs["error"].mean()), "items": float(len(outputs["error"]))},
        protocol={"task": "regression"},
    )
    return Task("toy", {"": specs}, init, loss_fn, train_data, {"held": evaluator}, {"y": encode})

"""The keys of the toy's config."""

from ml_collections import ConfigDict

from vlm_jax.config import base_config


def default_config() -> ConfigDict:
    """Return the configuration of a short run, not locked."""
    config = base_config()
    config.task, config.batch_size, config.steps, config.log_every = "toy", 8, 6, 1
    # Records with the splits 'train' and 'held'; '' draws random examples.
    config.data.directory = ""
    config.model = ConfigDict({"inputs": 4, "outputs": 2})
    config.schedule.learning_rate = 0.05
    config.checkpoint.every_steps = 3
    return config

"""Places of arrays, and joining other processes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from vlm_jax.config import base_config
from vlm_jax.errors import ConfigError
from vlm_jax.train import sharding


def test_first_rule_wins_and_no_rule_replicates():
    tree = {"a": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}, "step": jnp.zeros(())}
    rules = (
        (r"a/kernel$", PartitionSpec("model")),
        (r"a/", PartitionSpec(None, "data")),
        ("step", PartitionSpec("data")),
    )
    specs = sharding.match_rules(rules, tree)
    assert specs["a"]["kernel"] == PartitionSpec("model")
    assert specs["a"]["bias"] == PartitionSpec(), "a rule for more axes than the array has does not fit"
    assert specs["step"] == PartitionSpec()


def test_a_model_axis_shards_parameters():
    config = base_config().mesh
    config.data, config.model = -1, 2
    mesh = sharding.make_mesh(config)
    assert dict(mesh.shape) == {"data": 2, "model": 2}
    tree = {"kernel": jnp.arange(8.0)}
    place = sharding.shardings(mesh, ((r"kernel", PartitionSpec("model")),), tree)
    placed = jax.device_put(tree, place)["kernel"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4,)}


def test_half_a_cluster_is_an_error(monkeypatch):
    monkeypatch.setenv("VLM_COORDINATOR", "localhost:1")
    with pytest.raises(ConfigError, match="VLM_NUM_PROCESSES, VLM_PROCESS_ID not set beside VLM_COORDINATOR"):
        sharding.initialize()

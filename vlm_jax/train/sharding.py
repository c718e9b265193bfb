"""Processes of a run, the device mesh, and the sharding of arrays over it."""

import os
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError, UserError
from vlm_jax.task import PartitionRules
from vlm_jax.train import partners
from vlm_jax.train.optimizer import path_name
from vlm_jax.types import Batch, PyTree

VARIABLES = ("VLM_COORDINATOR", "VLM_NUM_PROCESSES", "VLM_PROCESS_ID")
CLUSTERS = ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES")
LOST = re.compile(r"Gloo|NCCL|[Cc]onnection|UNAVAILABLE|DEADLINE_EXCEEDED|[Hh]eartbeat|[Bb]arrier")
"""Words in the errors of jax when processes cannot reach one another."""


class LostProcessError(UserError):
    """Another process of this run is gone."""


class DeviceMemoryError(UserError):
    """A batch or a model that the devices cannot hold."""


def initialize() -> None:
    """Join the other processes and watch them (`train/partners.py`); call before anything touches a device.

    `VLM_COORDINATOR` (host:port), `VLM_NUM_PROCESSES` and `VLM_PROCESS_ID` have priority over what jax detects (SLURM
    with several tasks, Open MPI 4, Kubernetes jobs, TPU pods). Otherwise this is the only process.

    Raises:
      ConfigError: if only some of the variables are set, or the process id is not below the number of processes.
    """
    given = {name: os.environ.get(name) for name in VARIABLES}
    if any(given.values()):
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise ConfigError(
                f"environment: {', '.join(missing)} not set beside {', '.join(set(given) - set(missing))}"
            )
        count, own = (given[name] for name in VARIABLES[1:])
        if not (count.isdigit() and own.isdigit() and int(own) < int(count)):
            raise ConfigError(
                f"environment: VLM_PROCESS_ID: expected one of 0 to VLM_NUM_PROCESSES - 1, found {own!r} of {count!r}"
            )
        jax.distributed.initialize(given["VLM_COORDINATOR"], int(count), int(own))
    elif any(name in os.environ for name in CLUSTERS) and os.environ.get("SLURM_NTASKS", "2") != "1":
        # A detected cluster of one is still one process: jax raises where it finds no description of the others.
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):
                raise
    if jax.distributed.is_initialized():
        partners.watch()


def explain(error: Exception) -> Exception:
    """Return the error to raise in place of one of jax: one line if the user can act on it, else the error itself."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return error if _backend_works() else _missing_backend(error)
    text = (str(error) or "unknown").splitlines()[0][:160]
    if jax.distributed.is_initialized() and LOST.search(str(error)):
        return LostProcessError(
            f"another process of this run has ended or cannot be reached, and its own output says why ({text})"
        )
    if "RESOURCE_EXHAUSTED" in text:
        return DeviceMemoryError(f"the device's memory is full: expected less, such as a lower batch_size ({text})")
    return error


def _backend_works() -> bool:
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False


def _missing_backend(error: Exception) -> ConfigError:
    wanted = jax.config.jax_platforms or "the default"
    said = f" ({str(error).splitlines()[0][:160]})" if str(error) else ""
    return ConfigError(
        f"JAX_PLATFORMS: jax cannot use {wanted!r} on this machine{said}: pip install 'vlm_jax[cuda12]' (or [cuda13], "
        "[tpu]), or set JAX_PLATFORMS=cpu"
    )


def make_mesh(config: ConfigDict) -> Mesh:
    """Make a mesh with the axes `data` and `model` over all devices; one size may be -1 for all remaining devices.

    Raises:
      ConfigError: if the sizes do not fit the number of devices.
    """
    devices = jax.device_count()
    sizes = {"data": config.data, "model": config.model}
    unknown = [axis for axis, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(unknown) == 1 and known > 0 and devices % known == 0:
        sizes[unknown[0]] = devices // known
    if unknown[1:] or int(np.prod(list(sizes.values()))) != devices:
        raise ConfigError(f"config.mesh: data x model = {config.data} x {config.model} does not fit {devices} devices")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def check_batch(mesh: Mesh, config: ConfigDict) -> None:
    """Check that the global batch and its groups can be sharded over this mesh.

    Raises:
      ConfigError: naming the key that does not fit.
    """
    shards = mesh.shape["data"]
    if config.batch_size % shards:
        raise ConfigError(f"config.batch_size: {config.batch_size} does not divide over {shards} devices")
    if config.batch_groups % shards and shards % config.batch_groups:
        raise ConfigError(
            f"config.batch_groups: {config.batch_groups} groups and {shards} devices: one must divide the other"
        )


def match_rules(rules: PartitionRules, tree: PyTree) -> PyTree:
    """Return a PartitionSpec for every leaf, from the first rule whose expression is found in the leaf's name.

    A leaf is replicated if no rule matches, or if the rule has more axes than the leaf.
    """

    def spec(path: tuple, leaf: jax.Array) -> PartitionSpec:
        name = path_name(path)
        found = next((spec for expression, spec in rules if re.search(expression, name)), PartitionSpec())
        return found if len(found) <= getattr(leaf, "ndim", 0) else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(mesh: Mesh, rules: PartitionRules, tree: PyTree) -> PyTree:
    """Return a NamedSharding for every leaf; see `match_rules`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        match_rules(rules, tree),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: examples over the axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(mesh: Mesh, batch: Batch) -> PyTree:
    """Make global arrays from every process's own consecutive part of the batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, np.asarray(value)), dict(batch))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Put a copy of every leaf on each device of the mesh, or on the default device if there is no mesh.

    A leaf that is on exactly the devices of the mesh already is returned unchanged. All processes pass the same values.
    """
    if mesh is None:
        return jax.device_put(tree)
    devices, where = set(mesh.devices.flat), replicated(mesh)

    def place(leaf: jax.Array | np.ndarray) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(place, tree)


def local_rows(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return the rows that this process holds of an array sharded over its first axis, in order and each once."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return np.asarray(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

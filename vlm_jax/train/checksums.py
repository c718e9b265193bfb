"""Checksums of arrays, independent of the sharding over devices and processes.

The checksum of an array is a sum modulo 2^32 over its 32-bit words; a narrower element counts as one word. Every word
is multiplied by an odd number that depends on its position. Integer sums are the same in any order, so XLA adds up the
parts of a sharded array where they lie. A single flipped bit always changes the sum.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.train.optimizer import path_name
from vlm_jax.types import PyTree

CHUNK = 1 << 20
"""Number of words that the host sums at once."""


def checksums(tree: PyTree) -> tuple[dict[str, str], list[str]]:
    """Return the checksum of every array by name, and the names of the arrays that are not finite.

    A checksum is a text such as 'float32 1a2b3c4d'.

    All processes call it. It fetches two numbers per array from the devices.
    """
    leaves = {path_name(path): _plain(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    found = jax.device_get({name: _summed(leaf) for name, leaf in leaves.items()})
    return (
        {name: f"{leaf.dtype} {int(found[name][0]):08x}" for name, leaf in leaves.items()},
        [name for name in leaves if found[name][1]],
    )


def _plain(leaf: Any) -> jax.Array | np.ndarray:
    """Return an array as it is, and a random key as its words."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _summed(array: jax.Array | np.ndarray) -> tuple[Any, Any]:
    """Return the checksum of an array and the number of its elements that are not finite."""
    if isinstance(array, np.ndarray) or (array.is_fully_addressable and _is_on_host(array)):
        return _sum_on_host(np.asarray(array))
    return _sum_on_devices(array)


def _is_on_host(array: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def _sum_on_host(array: np.ndarray) -> tuple[int, int]:
    """Return checksum and non-finite count with numpy, so that nothing is compiled."""
    flat = np.ascontiguousarray(array).reshape(-1)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    words = flat.view(np.dtype(f"u{min(array.dtype.itemsize, 4)}"))
    total = wrong = 0
    for begin in range(0, words.size, CHUNK):
        part = words[begin : begin + CHUNK].astype(np.uint32)
        place = (np.arange(begin, begin + part.size, dtype=np.uint64) & 0xFFFFFFFF).astype(np.uint32)
        total += int(np.sum(part * _weight(place), dtype=np.uint32))
        if is_float:
            wrong += int(np.count_nonzero(~np.isfinite(flat[begin : begin + CHUNK])))
    return total & 0xFFFFFFFF, wrong


@jax.jit
def _sum_on_devices(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return checksum and non-finite count by elementwise operations, so that every device reads only its own part."""
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    wrong = jnp.sum(~jnp.isfinite(array), dtype=jnp.uint32) if is_float else jnp.zeros((), jnp.uint32)
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"u{min(array.dtype.itemsize, 4)}")).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1 :]) & 0xFFFFFFFF)
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return jnp.sum(words * _weight(place), dtype=jnp.uint32), wrong


def _weight(place: Any) -> Any:
    """Return an odd factor for each position in the array, hashed over all 32 bits."""
    spread = place * np.uint32(0x9E3779B1)
    return (spread ^ (spread >> np.uint32(15))) | np.uint32(1)

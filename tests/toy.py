"""The sixth system of the tests, `tests/sixth/toy`: how it becomes one, and its parts for tests of the loops."""

import contextlib
from pathlib import Path

from vlm_jax import systems


@contextlib.contextmanager
def installed():
    """Make the package a system of the library for a while."""
    folder = str(Path(__file__).parent / "sixth")
    systems.__path__.append(folder)
    try:
        yield
    finally:
        systems.__path__.remove(folder)


with installed():
    from vlm_jax.systems.toy.batches import TRUTH, Batches
    from vlm_jax.systems.toy.config import default_config
    from vlm_jax.systems.toy.task import make_task

__all__ = ["TRUTH", "Batches", "default_config", "installed", "make_config", "make_task"]


def make_config(**overrides):
    """Return a locked config; `schedule__learning_rate=0.1` sets a key of a section."""
    config = default_config()
    for key, value in overrides.items():
        *parents, leaf = key.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return config.lock()

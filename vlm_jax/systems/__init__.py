"""The systems, one package each. `config.task` names one; its modules are found here by their fixed names.

    config       default_config(): every key of the system, with the published sizes
    task         make_task(config): what the training and evaluation loops know
    predict      make_predictor(...): what `inference.load` returns
    interop      names and published files of the reference's checkpoints
    data         records and batches (TensorFlow)

A new system is a new folder; no table lists them.
"""

import importlib
import importlib.util
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Return the names of all systems, sorted."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__) if entry.ispkg)


def has(name: str, part: str) -> bool:
    """Return whether a system has a module of that name."""
    return importlib.util.find_spec(f"{__name__}.{name}.{part}") is not None


def module(name: str, part: str) -> ModuleType:
    """Return a system's module, such as `module("milnce", "task")`."""
    return importlib.import_module(f"{__name__}.{name}.{part}")

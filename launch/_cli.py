"""What the commands share: arguments, and errors for people."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Where some library loads TensorFlow before ours does: no notices of its own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with `--config`."""
    made = argparse.ArgumentParser(
        description=description,
        epilog="Any config key can be set: --config.batch_size=64 --config.schedule.learning_rate=1e-4",
    )
    made.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="a file of configs/, and its variant")
    return made


def parse(made: argparse.ArgumentParser) -> tuple[argparse.Namespace, ConfigDict]:
    """Parses the command line; `--config.key=value` and `--config.key value` override the config."""
    arguments, rest = made.parse_known_args()
    overrides: list[str] = []
    for word in rest:
        if word.startswith("--config."):
            overrides.append(word)
        elif overrides and "=" not in overrides[-1] and not word.startswith("--"):
            overrides[-1] += f"={word}"
        else:
            made.error(f"unknown argument: {word}")
    return arguments, configs.load(arguments.config, overrides)


def compile_cache() -> None:
    """Keeps compiled programs between runs, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "vlm_jax" / "compiled"))


def run(main: Callable[[], None]) -> None:
    """Runs a command; an expected error is one line and exit status 1."""
    try:
        main()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if type(error).__module__.split(".")[0] not in ("vlm_jax", "builtins") or type(error) in (
            ValueError,
            RuntimeError,
        ):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

"""Arguments and one-line errors of all commands."""

import argparse
import csv
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

# Another library may load TensorFlow before ours does, so its log level is set here.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.errors import UserError, missing_package
from vlm_jax.references import PREFIX
from vlm_jax.train.sharding import explain


def parser(description: str, *, config_required: bool = True) -> argparse.ArgumentParser:
    """Return an argument parser with the option `--config`."""
    made = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any config key can be set: --config.batch_size=64 --config.schedule.learning_rate=1e-4",
    )
    made.add_argument(
        "--config", required=config_required, metavar="FILE[:VARIANT]", help="file of configs/, and its variant"
    )
    return made


def parse(made: argparse.ArgumentParser) -> tuple[argparse.Namespace, ConfigDict]:
    """Parse the command line and load the config, with overrides `--config.key=value` and `--config.key value`."""
    arguments, overrides = parse_overrides(made)
    return arguments, configs.load(arguments.config, overrides)


def parse_overrides(made: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line. Return its options, and overrides of the config as `--config.key=value`."""
    arguments, rest = made.parse_known_args()
    overrides: list[str] = []
    for word in rest:
        if word.startswith("--config."):
            overrides.append(word)
        elif overrides and "=" not in overrides[-1] and not word.startswith("--"):
            overrides[-1] += f"={word}"
        else:
            made.error(f"unknown argument: {word}")
    return arguments, overrides


def lasting(reference: str, folder: Path) -> str:
    """Return a checkpoint's name that is valid in any folder: `released:NAME`, or the absolute path."""
    return reference if reference.startswith(PREFIX) else str(folder.absolute())


def report_skipped(path: Path, skipped: Sequence[tuple[str, str, str]]) -> None:
    """Write skipped items (item, reason, detail) to a csv file and print their number by reason.

    If there are none, an older file is removed.
    """
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file, lineterminator="\n").writerows([("item", "reason", "detail"), *skipped])
    print(f"  {len(skipped)} skipped, each with its reason in {path}")
    for reason, number in Counter(reason for _, reason, _ in skipped).most_common(5):
        print(f"  {number} x {reason}")


def compile_cache() -> None:
    """Keep compiled programs between runs, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "vlm_jax" / "compiled"))


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print warnings for users as one line, and drop warnings for programmers."""
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """Run a command. An error for the user prints one line and exits with status 1."""
    warnings.showwarning = _show_warning
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        line = error_line(error)
        if not line:
            raise
        print(line, file=sys.stderr)
        if jax.distributed.is_initialized():
            # A normal exit waits for the other processes, which may have died or may wait for this one.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        sys.exit(1)


def error_line(error: BaseException) -> str:
    """Return the line to print for an error, empty if the error is not meant for the user."""
    if isinstance(error, ModuleNotFoundError):
        error = missing_package(error)
    elif isinstance(error, RuntimeError | AssertionError):  # jax asserts if a named backend has no plugin
        error = explain(error)
    return f"error: {error}" if isinstance(error, UserError | OSError) else ""


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if line := error_line(error):
        print(line, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# A missing package raises while a command is imported, before `run` can catch it.
sys.excepthook = _report

"""Evaluate a checkpoint: python launch/evaluate.py --workdir RUN [--checkpoint PATH] [--config.key=value ...]

Restores the newest checkpoint of the run, or the given one (`RUN@best`, `RUN@STEP`, a step's folder, a converted
checkpoint, released:NAME), and runs the evaluators of its config. Each result is written to `RUN/results/NAME.json`,
with its protocol and origin. `--config FILE` takes evaluators and data from a file instead of from the run. Existing
results of another evaluation are an error; `--name LABEL` writes to `RUN/results/LABEL/`, `--overwrite` replaces them.
"""

import argparse
from pathlib import Path
from typing import Any

import _cli
import jax
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.convert import checkpoint_path
from vlm_jax.errors import ConfigError
from vlm_jax.task import get_task
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables


def main() -> None:
    """Run the command."""
    parser = _cli.parser(__doc__, config_required=False)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run; results go there")
    parser.add_argument(
        "--checkpoint", default="", help="checkpoint, such as RUN@best (default: newest of the workdir)"
    )
    parser.add_argument("--evaluator", action="append", help="run only this evaluator; may be repeated")
    parser.add_argument("--average", action="store_true", help="evaluate the running average of the parameters")
    parser.add_argument("--name", default="", help="subfolder of results/ to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another evaluation")
    arguments, overrides = _cli.parse_overrides(parser)
    if Path(arguments.name).name != arguments.name:
        raise ConfigError(f"--name: expected the name of a folder, found {arguments.name!r}")
    folder = checkpoint_folder(checkpoint_path(arguments.checkpoint or arguments.workdir))
    config = read_config(arguments.config, folder, overrides)
    _cli.compile_cache()
    sharding.initialize()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    task = get_task(config)
    for name in arguments.evaluator or ():
        if name not in task.evaluators:
            raise ConfigError(f"--evaluator: {name!r} is not one of {', '.join(task.evaluators) or 'none'}")
    if not task.evaluators:
        raise ConfigError(f"{arguments.config or folder}: its config has no evaluators")
    results, origin = arguments.workdir / "results" / arguments.name, describe(arguments, folder, overrides)
    chosen = {name: task.evaluators[name] for name in arguments.evaluator or task.evaluators}
    for name, evaluator in chosen.items():
        evaluate.check_results(results, name, evaluator, origin, overwrite=arguments.overwrite)
    mesh = sharding.make_mesh(config.mesh)
    abstract = task.abstract_variables()
    places = sharding.shardings(mesh, task.partition_rules, abstract)
    abstract = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places)
    variables = restore_variables(folder, abstract, average=arguments.average)
    for name, evaluator in chosen.items():
        evaluation = evaluate.run(evaluator, variables, mesh, config.evaluate.batch_size, results)
        if jax.process_index():
            continue
        evaluate.write_results(results, name, evaluation, evaluator, origin)
        print(f"{name} ({folder}, {origin['weights']} weights): {evaluate.one_line(evaluation.metrics)}")
        print(f"  all metrics in {results / name}.json")


def read_config(reference: str, folder: Path, overrides: list[str]) -> ConfigDict:
    """Return the config of the checkpoint's run, or of a file completed by properties of the run's training data."""
    trained = configs.find(folder)
    if reference:
        config = configs.load(reference, overrides)
        configs.adopt(config, trained)
        return config
    for override in overrides:
        configs.apply_override(trained, override)
    configs.check(trained)
    return trained


def describe(arguments: argparse.Namespace, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Return the origin that results state. A checkpoint of the run itself is named relative to the run's folder."""
    folder, workdir = folder.absolute(), arguments.workdir.absolute()
    return {
        "checkpoint": str(folder.relative_to(workdir) if folder.is_relative_to(workdir) else folder),
        "step": int(folder.name) if folder.name.isdigit() else None,
        "chosen_by": arguments.checkpoint or "newest",
        "weights": "averaged" if arguments.average else "raw",
        "config": arguments.config or "the run's",
        "overrides": overrides,
    }


if __name__ == "__main__":
    _cli.run(main)

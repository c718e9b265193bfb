"""Evaluates a checkpoint: python launch/evaluate.py --config FILE[:VARIANT] --workdir DIR [--checkpoint PATH]

Restores the newest checkpoint of the workdir, or the one given (a step's folder or a converted checkpoint), runs the
evaluators and writes `workdir/results/NAME.json`, each stating its protocol.
"""

from pathlib import Path

import _cli
import jax

from vlm_jax.convert import checkpoint_path
from vlm_jax.errors import ConfigError
from vlm_jax.task import get_task
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables
from vlm_jax.train.initialise import check_sources


def main() -> None:
    """Runs the command."""
    parser = _cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run; results go there")
    parser.add_argument("--checkpoint", type=Path, help="instead of the workdir's newest; or released:NAME")
    parser.add_argument("--evaluator", action="append", help="run only this one; may be repeated")
    parser.add_argument("--average", action="store_true", help="the running average of the parameters")
    arguments, config = _cli.parse(parser)
    _cli.compile_cache()
    sharding.initialize()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    task = get_task(config)
    for name in arguments.evaluator or ():
        if name not in task.evaluators:
            raise ConfigError(f"--evaluator: {name!r} is not one of {', '.join(task.evaluators) or 'none'}")
    folder = checkpoint_folder(checkpoint_path(arguments.checkpoint or arguments.workdir))
    check_sources(config, folder)
    mesh = sharding.make_mesh(config.mesh)
    abstract = task.abstract_variables()
    places = sharding.shardings(mesh, task.partition_rules, abstract)
    abstract = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places)
    variables = restore_variables(folder, abstract, average=arguments.average)
    for name in arguments.evaluator or task.evaluators:
        evaluator = task.evaluators[name]
        evaluation = evaluate.run(evaluator, variables, mesh, config.evaluate.batch_size)
        if jax.process_index():
            continue
        origin = {"checkpoint": str(folder), "config": arguments.config}
        evaluate.write_results(arguments.workdir / "results", name, evaluation, evaluator, origin)
        print(f"{name} ({folder}):")
        for metric, value in evaluation.metrics.items():
            print(f"  {metric:<24} {value:.4f}")
        print(f"  written to {arguments.workdir / 'results' / name}.json")


if __name__ == "__main__":
    _cli.run(main)

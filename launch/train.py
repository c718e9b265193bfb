"""Train a system: python launch/train.py --config configs/NAME.py[:variant] --workdir DIR [--config.key=value ...]

The same command again resumes from the newest checkpoint of the workdir. SIGTERM and Ctrl-C save and stop; a second
Ctrl-C stops without waiting.
"""

from pathlib import Path

import _cli
import jax

from vlm_jax import config as configs
from vlm_jax.task import get_task
from vlm_jax.train import sharding
from vlm_jax.train.loop import train


def main() -> None:
    """Run the command."""
    parser = _cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run: checkpoints, metrics, results")
    arguments, config = _cli.parse(parser)
    configs.describe(config)
    configs.use_carried_files(config, arguments.workdir, where_missing=True)
    _cli.compile_cache()
    sharding.initialize()
    jax.config.update("jax_debug_nans", config.debug_nans)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    train(get_task(config), config, arguments.workdir)


if __name__ == "__main__":
    _cli.run(main)

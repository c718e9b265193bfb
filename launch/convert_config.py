"""Convert a configuration of SNP-S3's reference: python launch/convert_config.py --source FILE.yml --output FILE.py

The output is a config for `--config` of all commands. The command line comes before a script, and a script before the
yml file:

    python launch/convert_config.py --source pretrain/cc_videoswin.yml --data data/cc3m \\
        optimizer_attributes.params.lr 5e-5 training_parameters.batch_size 128
    python launch/convert_config.py --script scripts/finetune/ret_msrvtt.sh --data data/msrvtt --output configs/mine.py
"""

import argparse
from pathlib import Path

import _cli

from vlm_jax import config as configs
from vlm_jax.errors import ConfigError
from vlm_jax.files import write_atomically
from vlm_jax.systems.snps3.config import default_config
from vlm_jax.systems.snps3.reference_config import Script, merge, parse_pairs, read_script
from vlm_jax.systems.snps3.reference_keys import Converted, convert

SHOWN = 8
"""Number of ignored keys that are printed; the file lists all."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--source", type=Path, help="yml file of the reference")
    source.add_argument("--script", type=Path, help="shell script of the reference, which names the yml file")
    parser.add_argument("--output", type=Path, help="config to write, .py (default: print it)")
    parser.add_argument("--data", action="append", default=[], help="folder of prepared data; may be given again")
    parser.add_argument("--vocabulary", default="", help="vocab.txt or sentencepiece model, config.text.vocabulary")
    parser.add_argument("--answers", default="", help="vocabulary of answers, config.answers.vocabulary")
    parser.add_argument("--gpus", type=int, help="the reference's GPUs (default: those of the script, else 8)")
    arguments, words = parser.parse_known_args()
    pairs = parse_pairs(words)
    script = read_script(arguments.script) if arguments.script else Script(arguments.source, [], 0)
    processes = arguments.gpus or script.processes or 8
    if processes < 1:
        raise ConfigError(f"--gpus: expected at least 1, found {processes}")
    found = convert(merge(script.file, [*script.pairs, *pairs]), processes)
    keys = found.keys | {"text.vocabulary": arguments.vocabulary, "answers.vocabulary": arguments.answers}
    keys["data.directories"] = tuple(arguments.data)
    text = config_file(found, keys, f"{arguments.script or arguments.source}")
    if arguments.output is None:
        print(text, end="")
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, text.encode())
    configs.load(str(arguments.output))
    print(f"{arguments.output}: {text.count('    config.')} keys differ from the defaults of snps3")
    for note in found.notes:
        print(f"  {note}")
    more = f" and {len(found.ignored) - SHOWN} more, all in the file" if len(found.ignored) > SHOWN else ""
    print(f"  {len(found.ignored)} keys are not read: {', '.join(found.ignored[:SHOWN])}{more}")


def config_file(found: Converted, keys: dict[str, object], source: str) -> str:
    """Return the text of a config with the keys that differ from the defaults."""
    defaults = default_config()
    lines = []
    if found.network != defaults.model.visual.name:
        lines.append(f'config.model.visual = visual_network("{found.network}")')
    for key, value in keys.items():
        current = defaults
        for field in key.split("."):
            current = current[field]
        if value != (tuple(current) if isinstance(value, tuple) else current):
            lines.append(f"config.{key} = {value!r}")
    directory = next(iter(keys["data.directories"]), "")
    if directory:
        chosen = found.evaluators.items()
        entries = (f"{name!r}: evaluator({kind!r}, {directory!r}, {split!r})" for name, (kind, split) in chosen)
        lines.append(f"config.evaluation = ConfigDict({{{', '.join(entries)}}})")
        lines.append("config.evaluate.names = ('val',)")
    notes = "".join(f"    {note}\n" for note in found.notes)
    ignored = "".join(f"    {key}\n" for key in found.ignored)
    body = "".join(f"    {line}\n" for line in lines)
    return f'''"""SNP-S3 by the reference's {source}, converted by launch/convert_config.py.

Notes:
{notes}
Keys of the reference that are not read:
{ignored}"""

from ml_collections import ConfigDict

from vlm_jax.systems.snps3.config import default_config, evaluator, visual_network

VARIANTS = ()


def get_config(variant: str = "") -> ConfigDict:
    """Return the config."""
    config = default_config()
{body}    return config
'''


if __name__ == "__main__":
    _cli.run(main)

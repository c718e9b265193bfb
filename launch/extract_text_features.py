"""Encode sentences: python launch/extract_text_features.py --checkpoint PATH --queries FILE --output NAME.npz

It writes one array per sentence under its qid, and the settings that made them to NAME.json
(`vlm_jax/text_features.py`). Sentences without a word of the word list are left out and listed.
"""

import argparse
import dataclasses
from pathlib import Path

import _cli

from vlm_jax import annotations, inference, text_features
from vlm_jax.annotations import FORMS
from vlm_jax.convert import checkpoint_path
from vlm_jax.errors import ConfigError
from vlm_jax.text_features import LAYERS
from vlm_jax.train.step_folders import checkpoint_folder


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", required=True, help="RUN, RUN@best, a converted one, released:NAME; with a text tower"
    )
    parser.add_argument("--vocabulary", default="", help="word list, if the checkpoint's config names none")
    parser.add_argument("--queries", required=True, type=Path, help="file of annotations")
    parser.add_argument("--format", default="jsonl", choices=tuple(FORMS), help="its form (default: %(default)s)")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .npz")
    parser.add_argument("--layer", default="sentence", choices=LAYERS, help="one vector per sentence, or per word")
    arguments = parser.parse_args()
    _cli.compile_cache()
    found = annotations.read(arguments.queries, arguments.format)
    model = inference.load(arguments.checkpoint, vocabulary=arguments.vocabulary)
    if not hasattr(model, "text_features"):
        raise ConfigError(
            f"{arguments.checkpoint}: a checkpoint of {model.config.task}; expected one with a text tower"
        )
    encoded = model.text_features({query.qid: query.query for query in found.queries}, arguments.layer)
    place = _cli.lasting(arguments.checkpoint, checkpoint_folder(checkpoint_path(arguments.checkpoint)))
    settings = dataclasses.replace(encoded.settings, checkpoint=place)
    text_features.save(arguments.output, encoded.vectors, settings)
    skipped = [tuple(fault) for fault in found.faults]
    skipped += [(name, "no known word", "") for name in encoded.unknown]
    print(
        f"{arguments.output}: {len(encoded.vectors)} sentences, {settings.dim} numbers each"
        f"{' word' if arguments.layer == 'words' else ''}; source {settings.source}"
    )
    _cli.report_skipped(arguments.output.with_suffix(".skipped.csv"), skipped)


if __name__ == "__main__":
    _cli.run(main)

"""Vectors of sentences: python launch/extract_text_features.py --checkpoint PATH --queries FILE --output NAME.npz [...]

Writes an array a sentence under its qid, and NAME.json, which says how they were made;
`vlm_jax/data/text_vectors.py` reads both. Sentences without a word of the word list are left out and listed.
"""

import argparse
from pathlib import Path

import _cli
import _text

from vlm_jax import annotations
from vlm_jax import text_features as text_vectors
from vlm_jax.annotations import FORMS


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="of milnce: a workdir, a step, a converted one, released:")
    parser.add_argument("--vocabulary", default="", help="word list, where the checkpoint's config names none")
    parser.add_argument("--queries", required=True, type=Path, help="file of annotations")
    parser.add_argument("--format", default="jsonl", choices=tuple(FORMS), help="of that file (default: %(default)s)")
    parser.add_argument("--output", required=True, type=Path, help="file to write, .npz")
    parser.add_argument(
        "--layer", default="sentence", choices=_text.LAYERS, help="one vector, or a vector a word (default: sentence)"
    )
    arguments = parser.parse_args()
    _cli.compile_cache()
    found = annotations.read(arguments.queries, arguments.format)
    encoded = _text.encode(
        arguments.checkpoint,
        {query.qid: query.query for query in found.queries},
        arguments.layer,
        arguments.vocabulary,
    )
    text_vectors.save(arguments.output, encoded.vectors, encoded.settings)
    skipped = [tuple(fault) for fault in found.faults]
    skipped += [(name, "no known word", "") for name in encoded.unknown]
    print(
        f"{arguments.output}: {len(encoded.vectors)} sentences, {encoded.settings.dim} numbers each"
        f"{' word' if arguments.layer == 'words' else ''}; source {encoded.settings.source}"
    )
    _cli.report_skipped(arguments.output.with_suffix(".skipped.csv"), skipped)


if __name__ == "__main__":
    _cli.run(main)

"""Merge result files of several models into one: python launch/ensemble.py A.json B.json C.json --output FILE

The inputs are result files of the Ego4D challenge (`*_submission.json`), best model first, with the same questions in
the same order. The result has five pairs of start and end per question (houzhijian/GroundNLQ, `ensemble.py`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import _cli

from vlm_jax.errors import ConfigError
from vlm_jax.systems.groundnlq.ensemble import ensemble

CHALLENGE = "ego4d_nlq_challenge"
KEYS = ("query_idx", "annotation_uid", "predicted_times", "clip_uid")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="result files, best model first")
    parser.add_argument("--output", required=True, type=Path, help="result file to write")
    arguments = parser.parse_args()
    if len(arguments.files) < 2:
        raise ConfigError(f"{arguments.files[0]}: one file is no ensemble; give several")
    found = [read_results(path) for path in arguments.files]
    try:
        merged = ensemble(found)
    except ValueError as error:
        names = ", ".join(f"file {number} is {path}" for number, path in enumerate(arguments.files, start=1))
        raise ConfigError(f"{error} ({names})") from None
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(merged))
    print(f"{arguments.output}: {len(merged['results'])} questions of {len(found)} files")


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a result file of the challenge, with scores.

    Raises:
      ConfigError: if it cannot be read or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    challenge = content.get("challenge") if isinstance(content, dict) else None
    if challenge != CHALLENGE or not isinstance(content.get("results"), list):
        raise ConfigError(f"{path}: challenge is {challenge!r}, expected a result file of {CHALLENGE}")
    for number, entry in enumerate(content["results"]):
        absent = [key for key in KEYS if not isinstance(entry, dict) or key not in entry]
        if absent:
            raise ConfigError(f"{path}: result {number} has no {absent[0]!r}")
        if any(len(times) < 3 for times in entry["predicted_times"]):
            raise ConfigError(f"{path}: result {number} has times without scores; is it an ensemble already?")
    return content


if __name__ == "__main__":
    _cli.run(main)

"""Finds moments: python launch/predict.py --config FILE[:VARIANT] --checkpoint PATH --filelist FILE [--output DIR]

The file list names videos, one a line or a JSON list, or is JSON or JSONL of {video, query, qid}; no ground truth is
needed. A sentence's vector comes from the data of `config.predict`, from `--vectors`, or from `--text_checkpoint`.
Writes `predictions.jsonl`, a line a sentence with scored segments, best first, and the reference's own file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _cli
import _text
import jax

from vlm_jax.annotations import AnnotationError
from vlm_jax.convert import checkpoint_path
from vlm_jax.errors import ConfigError
from vlm_jax.task import get_task
from vlm_jax.text_features import TextVectors
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables
from vlm_jax.train.initialise import check_sources

Request = dict[str, Any]
Skipped = list[tuple[str, str, str]]


def main() -> None:
    """Runs the command."""
    parser = _cli.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", required=True, help="a workdir, a step's folder, a converted one, released:NAME"
    )
    parser.add_argument("--filelist", required=True, type=Path, help="videos, or sentences about them")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder (default: %(default)s)")
    parser.add_argument("--top_k", type=int, default=5, help="segments of each sentence (default: %(default)s)")
    parser.add_argument("--vectors", type=Path, help=".npz of launch/extract_text_features.py: sentences by qid")
    parser.add_argument("--text_checkpoint", help="encodes sentences that have no vector: a checkpoint of milnce")
    parser.add_argument("--vocabulary", default="", help="word list of --text_checkpoint, where its config names none")
    parser.add_argument("--text_layer", default="sentence", choices=_text.LAYERS, help="of --text_checkpoint")
    arguments, config = _cli.parse(parser)
    if arguments.top_k < 1:
        raise ConfigError(f"--top_k: expected at least 1, found {arguments.top_k}")
    requests, skipped = read_requests(arguments.filelist)
    _cli.compile_cache()
    task = get_task(config)
    if task.predict is None:
        raise ConfigError(f"{arguments.config}: {task.name} has no prediction")
    folder = checkpoint_folder(checkpoint_path(arguments.checkpoint))
    check_sources(config, folder)
    if arguments.vectors:
        add_vectors(requests, TextVectors(arguments.vectors))
    if arguments.text_checkpoint:
        encode_vectors(requests, skipped, arguments)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    found = task.predict(restore_variables(folder, task.abstract_variables()), requests, arguments.top_k)
    skipped += found.missing
    if not found.lines:
        raise ConfigError(f"{arguments.filelist}: nothing can be predicted; {': '.join(skipped[0])}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found.lines)
    for name, text in {"predictions.jsonl": lines, **found.files}.items():
        (arguments.output / name).write_text(text, encoding="utf-8")
    videos = len({line["video"] for line in found.lines})
    print(f"{arguments.output}: {len(found.lines)} sentences of {videos} videos ({folder})")
    _cli.report_skipped(arguments.output / "skipped.csv", skipped)


def read_requests(path: Path) -> tuple[list[Request], Skipped]:
    """What a file list asks, see `task.Predict`, and entries that cannot be used.

    Raises:
      AnnotationError: where it cannot be read, or asks nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not a UTF-8 file ({error})") from None
    requests: list[Request] = []
    skipped: Skipped = []
    asked: dict[str, int] = {}
    seen = set()
    for number, entry in enumerate(_entries(path, text), start=1):
        entry = {"video": entry} if isinstance(entry, str) else entry
        video, query, qid = (_word(entry, *names) for names in (("video", "vid"), ("query", "sentence"), ("qid",)))
        request = {"video": video}
        if query.strip():
            request |= {"query": query, "qid": qid or f"{video}#{asked.get(video, 0)}"}
            asked[video] = asked.get(video, 0) + 1
        # A sentence's name is its own; a video without a sentence is asked about once.
        key = ("qid", request["qid"]) if "qid" in request else ("video", video)
        if not video:
            skipped.append((f"entry {number}", "no video", json.dumps(entry)[:80]))
        elif key in seen:
            skipped.append((f"entry {number}", "duplicate id", request.get("qid", video)))
        else:
            seen.add(key)
            requests.append(request)
    if not requests:
        raise AnnotationError(
            f"{path}: an empty list; expected videos, one a line, or JSON of {{video, query}}"
            + (f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else "")
        )
    return requests, skipped


def _entries(path: Path, text: str) -> Sequence[Any]:
    begin = text.lstrip()[:1]
    try:
        if begin == "[":
            return json.loads(text)
        if begin == "{":
            try:
                return [json.loads(text)]
            except ValueError:
                return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise AnnotationError(f"{path}: neither JSON nor JSONL ({error})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _word(entry: Any, *names: str) -> str:
    """The first of some keys that an entry has, as text."""
    found = next((entry[name] for name in names if name in entry), "") if isinstance(entry, dict) else ""
    return str(found) if isinstance(found, str | int) else ""


def add_vectors(requests: Sequence[Request], vectors: TextVectors) -> None:
    """Gives every sentence its vector, where there is one of its qid."""
    for request in requests:
        if request.get("qid") in vectors:
            request |= {"vector": vectors[request["qid"]], "source": vectors.source}


def encode_vectors(requests: list[Request], skipped: Skipped, arguments: Any) -> None:
    """Encodes the sentences that have no vector; those without a known word are left out."""
    wanted = {
        request["qid"]: request["query"] for request in requests if "query" in request and "vector" not in request
    }
    if not wanted:
        return
    encoded = _text.encode(arguments.text_checkpoint, wanted, arguments.text_layer, arguments.vocabulary)
    skipped += [(name, "no known word", wanted[name]) for name in encoded.unknown]
    requests[:] = [request for request in requests if request.get("qid") not in set(encoded.unknown)]
    for request in requests:
        if request.get("qid") in encoded.vectors:
            request |= {"vector": encoded.vectors[request["qid"]], "source": encoded.settings.source}


if __name__ == "__main__":
    _cli.run(main)

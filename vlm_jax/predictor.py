"""What all predictors share: a restored checkpoint, its compiled functions, and the forms of their answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.extraction import Extractor
from vlm_jax.train.state import fingerprint
from vlm_jax.types import Batch, Outputs, Variables


class Moment(NamedTuple):
    """A stretch of a video that answers a sentence: start and end in seconds, and a score."""

    start: float
    end: float
    score: float


class Predictions(NamedTuple):
    """Answers to the requests of a person.

    Attributes:
      lines: One JSON object per sentence: qid, video, query, and `seconds` `[[start, end, score], ...]`, best first.
      files: Text of further files by name, such as the reference's own form.
      missing: What could not be answered: its name, the reason (the same for all alike), and what was found.
    """

    lines: list[dict[str, Any]]
    files: Mapping[str, str]
    missing: list[tuple[str, str, str]]


Request = Mapping[str, Any]
"""A video by name (`video`), and where one sentence is asked about `query`, `qid`, and `vector` where it is at hand
already, with `source`, what made it (`text_features.TextSettings.source`). Without a sentence it stands for all
sentences that the prepared data have of the video."""


class Predictor:
    """A restored checkpoint of a system; its subclasses are what `inference.load` returns.

    Attributes:
      config: Of the run that made it.
      variables: Parameters and model state, on the device.
    """

    def __init__(self, config: ConfigDict, variables: Variables) -> None:
        # Placed once: restored arrays are the host's, and would be copied at every call.
        self.config, self.variables = config, jax.device_put(variables)

    def compile(self, function: Callable[[Variables, Batch], Outputs]) -> Callable[[Variables, Batch], Outputs]:
        """Return the function jitted, with the products of the precision that the run asked for."""

        def run(variables: Variables, batch: Batch) -> Outputs:
            with jax.default_matmul_precision(self.config.matmul_precision):
                return function(variables, batch)

        return jax.jit(run)

    def fingerprint(self) -> str:
        """Return a digest (SHA-256) of the names, shapes and values of all variables: equal weights, equal text."""
        return fingerprint(self.variables)


def moments_of(rows: Sequence[Sequence[float]]) -> list[Moment]:
    """Return rows of start, end and score as moments."""
    return [Moment(*map(float, row[:3])) for row in rows]


def row_batches(name: str, rows: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of an array as batches `{name: [B, ...], mask, index}` of one size, the last one padded."""
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        padded = np.zeros((batch_size, *rows.shape[1:]), rows.dtype)
        padded[: len(part)] = part
        index = begin + np.arange(batch_size)
        yield {name: padded, "mask": (index < len(rows)).astype(np.int32), "index": index.astype(np.int32)}


def encode_requests(
    requests: Sequence[Request], extractor: Extractor
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Give raw sentences the features that the model was trained on, where these can be made here.

    Returns:
      The requests, sentences with `vector` and `source`; and sentences without a known word, as `Predictions.missing`.
    """
    requests = [dict(request) for request in requests]
    wanted = {
        str(number): request["query"]
        for number, request in enumerate(requests)
        if "query" in request and "vector" not in request
    }
    if not wanted or not extractor.makes_text:
        return requests, []
    encoded = extractor.sentences(wanted)
    for number, vector in encoded.vectors.items():
        requests[int(number)] |= {"vector": vector, "source": encoded.settings.source}
    lost = {int(number) for number in encoded.unknown}
    missing = [(str(requests[n].get("qid", n)), "no known word", requests[n]["query"]) for n in sorted(lost)]
    return [request for number, request in enumerate(requests) if number not in lost], missing

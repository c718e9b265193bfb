"""Base of all predictors: a restored checkpoint, its compiled functions, and the forms of requests and answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.extraction import Extractor
from vlm_jax.train.state import fingerprint
from vlm_jax.types import Batch, Outputs, Variables


class Moment(NamedTuple):
    """Stretch of a video that answers a sentence: start and end in seconds, and a score."""

    start: float
    end: float
    score: float


class Match(NamedTuple):
    """Video, or part of it, that a text was searched in.

    Attributes:
      video: Name of the video.
      score: Score by which the matches of a text are ordered.
      start: Start of the part, seconds.
      end: Its end; None for the end of the video.
      levels: Scores by the name of their level, for a model with several.
    """

    video: str
    score: float
    start: float = 0.0
    end: float | None = None
    levels: Mapping[str, float] = {}


class Predictions(NamedTuple):
    """Answers to requests.

    Attributes:
      lines: One JSON object per sentence: qid, video, query, and `seconds` `[[start, end, score], ...]`, best first.
        Lines about questions have their answers, and those about seconds of a film its people.
      files: Text of further files by name, such as predictions in the reference's format.
      missing: Requests without an answer: name, reason (one text per kind of reason), and what was found.
    """

    lines: list[dict[str, Any]]
    files: Mapping[str, str]
    missing: list[tuple[str, str, str]]


Request = Mapping[str, Any]
"""Question about a video, by key: `video`, its name; `query`, the sentence; `qid`, the sentence's name; `vector`, its
features if they exist, with `source`, what made them (`text_features.TextSettings.source`). Without a sentence, all
sentences of the video in the prepared data are asked. A question may have `options`, and `start` and `end` (seconds) of
the part of the video that it is about."""


class Predictor:
    """Restored checkpoint of a system; `inference.load` returns an instance of a subclass.

    Attributes:
      config: Config of the run that wrote the checkpoint.
      variables: Parameters and model state, on the device.
    """

    def __init__(self, config: ConfigDict, variables: Variables) -> None:
        # Placed once: restored arrays lie on the host, and would be copied at every call.
        self.config, self.variables = config, jax.device_put(variables)

    def compile(self, function: Callable[[Variables, Batch], Outputs]) -> Callable[[Variables, Batch], Outputs]:
        """Return the function jitted, with matrix products in the precision of the run (`config.matmul_precision`)."""

        def run(variables: Variables, batch: Batch) -> Outputs:
            with jax.default_matmul_precision(self.config.matmul_precision):
                return function(variables, batch)

        return jax.jit(run)

    def fingerprint(self) -> str:
        """Return the SHA-256 digest of the names, shapes and values of all variables."""
        return fingerprint(self.variables)


def moments_of(rows: Sequence[Sequence[float]]) -> list[Moment]:
    """Return rows of start, end (seconds) and score as moments."""
    return [Moment(*map(float, row[:3])) for row in rows]


def row_batches(name: str, rows: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of an array `[N, ...]` as padded batches: `name` `[B, ...]`, `mask` `[B]` and `index` `[B]`."""
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        padded = np.zeros((batch_size, *rows.shape[1:]), rows.dtype)
        padded[: len(part)] = part
        index = begin + np.arange(batch_size)
        yield {name: padded, "mask": (index < len(rows)).astype(np.int32), "index": index.astype(np.int32)}


def encode_requests(
    requests: Sequence[Request], extractor: Extractor
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Add features to the sentences of requests, of the kind that the model was trained on.

    Requests are returned unchanged if the features cannot be made here.

    Returns:
      The requests, whose sentences have `vector` and `source`; and the sentences without a known word, in the form of
      `Predictions.missing`.
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

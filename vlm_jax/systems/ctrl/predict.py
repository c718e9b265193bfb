"""CTRL's answers to sentences about videos, without ground truth."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError
from vlm_jax.systems.ctrl import metrics
from vlm_jax.systems.ctrl.model import Ctrl
from vlm_jax.systems.ctrl.scoring import answer, make_comparison
from vlm_jax.task import Predictions
from vlm_jax.types import Variables

THRESHOLD = 0.5
"""Segments are suppressed as when answers that overlap by this count as right."""
BATCH = 256
"""Windows or sentences that are embedded at the same time."""
FILE = "TALL_infer_res_.json"
"""The reference's name for predictions."""


def predict(
    config: ConfigDict,
    model: Ctrl,
    rules: Any,
    variables: Variables,
    requests: Sequence[Mapping[str, Any]],
    top_k: int,
) -> Predictions:
    """The best segments for every sentence; see `task.Predict`.

    Args:
      config: `config.predict` says where windows and sentences lie, `config.data` what they were made with.
      model: Of the variables.
      rules: How a window's input is made (`samples.SampleSpec`).
      variables: Parameters.
      requests: Videos, or sentences about them.
      top_k: Segments of each sentence.

    Raises:
      DataError: for data that cannot be used.
      ConfigError: for vectors of another size, or made otherwise than those of training.
    """
    from vlm_jax.systems.ctrl import data

    windows = data.load_windows(config.predict.windows, {request["video"] for request in requests}, rules)
    known: dict[str, list[Any]] = {}
    if any("vector" not in request for request in requests):
        for query in data.load_queries(config.predict.queries, config.predict.split, rules):
            known.setdefault(query.video, []).append(query)
    sentences, missing = _sentences(requests, known, config)
    videos = {video.name: video for video in windows}
    by_video: dict[str, list[dict[str, Any]]] = {}
    for sentence in sentences:
        by_video.setdefault(sentence["video"], []).append(sentence)
    embed_clips = jax.jit(lambda variables, x: model.apply(variables, x, method="embed_clips"))
    embed_sentences = jax.jit(lambda variables, x: model.apply(variables, x, method="embed_sentences"))
    compare = make_comparison(model, variables, **config.tile)
    lines, answers = [], []
    for name, asked in sorted(by_video.items()):
        if name not in videos:
            missing.append((name, "video without windows", f"{len(asked)} sentences; {config.predict.windows}"))
            continue
        video = videos[name]
        visual = np.stack([video.visual(row) for row in range(len(video.spans))])
        clips = _embedded(embed_clips, variables, visual)
        texts = _embedded(embed_sentences, variables, np.stack([sentence["vector"] for sentence in asked]))
        unknown = np.full((len(asked), 2), np.nan)
        found = answer(name, video.spans, unknown, compare(clips, texts), (THRESHOLD,), top_k)
        answers.append(found)
        for sentence, best in zip(asked, found.best[THRESHOLD], strict=True):
            lines.append(query_line(sentence["qid"], name, sentence["query"], best, video.fps or sentence["fps"]))
    return Predictions(lines, {FILE: metrics.predictions_text(answers, THRESHOLD)}, missing)


def query_line(qid: str, video: str, text: str, best: np.ndarray, fps: float) -> dict[str, Any]:
    """A sentence with its segments `[K, 3]` (start, end, score; NaN where there are no more), best first.

    In frames, and in seconds where frames per second are known.
    """
    found = [segment for segment in best.tolist() if segment[0] == segment[0]]
    line = {"qid": qid, "video": video, "query": text, "frames": found}
    if fps:
        line["seconds"] = [[start / fps, end / fps, score] for start, end, score in found]
    return line


def _sentences(
    requests: Sequence[Mapping[str, Any]], known: Mapping[str, Sequence[Any]], config: ConfigDict
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """What is asked, each sentence with its vector, and what cannot be."""
    found, missing, dim = [], [], config.model.sentence_dim
    for number, request in enumerate(requests):
        video, text = request["video"], request.get("query", "")
        name = str(request.get("qid", f"{video}#{number}"))
        if "vector" in request:
            vector = np.asarray(request["vector"], np.float32)
            if vector.shape != (dim,):
                raise ConfigError(
                    f"sentence {name}: a vector of shape {list(vector.shape)}, the model takes [{dim}] "
                    "(config.model.sentence_dim)"
                )
            if request.get("source", "") != config.data.sentence_source:
                raise ConfigError(
                    f"sentence {name}: its vector was made with {request.get('source', '')!r}, the config asks for "
                    f"{config.data.sentence_source!r} (config.data.sentence_source)"
                )
            if not np.isfinite(vector).all():
                missing.append((name, "vector not finite", text))
                continue
            found.append({"qid": name, "video": video, "query": text, "vector": vector, "fps": 0.0})
            continue
        matches = [
            query
            for query in known.get(video, ())
            if ("query" not in request or query.text == text) and ("qid" not in request or query.qid == name)
        ]
        found += [
            {"qid": query.qid, "video": video, "query": query.text, "vector": query.vector, "fps": query.fps}
            for query in matches
        ]
        if not matches:
            place = f"{config.predict.queries} ({config.predict.split})"
            reason = "sentence without a vector" if text else "video without sentences"
            missing.append((name if text else video, reason, f"{text!r} is not in {place}" if text else place))
    return found, missing


def _embedded(embed: Any, variables: Variables, rows: np.ndarray) -> np.ndarray:
    """Embeddings `[N, D]`, by batches of one size."""
    parts = []
    for begin in range(0, len(rows), BATCH):
        part = rows[begin : begin + BATCH]
        filled = np.pad(part, ((0, BATCH - len(part)), (0, 0)))
        parts.append(np.asarray(embed(variables, filled))[: len(part)])
    return np.concatenate(parts)

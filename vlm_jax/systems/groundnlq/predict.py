"""GroundNLQ's answers: from what windows of a clip show to moments of questions, and the files that hold them."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError
from vlm_jax.ops.nms import DECAYS
from vlm_jax.systems.groundnlq.decoding import SUPPRESSIONS, Decoding
from vlm_jax.task import Predictions
from vlm_jax.types import DataShard, Variables

SUBMITTED = 10
"""Moments of a question that the challenge's file holds at most."""
FILE = "nlq_submission.json"
BATCH = 4
"""Questions that prediction answers at the same time."""


def make_decoding(config: ConfigDict, max_moments: int | None = None) -> Decoding:
    """Return how moments are chosen, as `config.decoding` says.

    Raises:
      ConfigError: for an unknown suppression or decay, and for voting among classes that suppress themselves only.
    """
    wanted = dict(config.decoding)
    for key, known in (("suppression", SUPPRESSIONS), ("decay", DECAYS)):
        if wanted[key] not in known:
            raise ConfigError(f"config.decoding.{key}: {wanted[key]!r} is not one of {', '.join(known)}")
    if wanted["vote"] and wanted["per_class"]:
        raise ConfigError(f"config.decoding.vote: {wanted['vote']}, expected 0 where config.decoding.per_class is set")
    # Targets have no such shift; the released models were trained and evaluated so.
    shift = 0.5 * config.data.feature_stride if wanted.pop("half_feature_shift") else 0.0
    if max_moments is not None:
        wanted["max_moments"] = max_moments
    grid = {"feature_stride": config.data.feature_stride, "shift": shift, "fps": config.data.fps}
    return Decoding(**wanted, **grid)


def by_query(
    config: ConfigDict, queries: Sequence[Any], store: Any, outputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Moments `[K, 3]` (start, end in seconds, score), best first, of every question; at least one.

    Where nothing was found the answer is the whole clip, with score 0.

    Args:
      config: Of the task.
      queries: Questions (`data.groundnlq.Query`).
      store: Of their clips.
      outputs: `segments`, `scores` and `there` of all windows, in their order.
    """
    from vlm_jax.systems.groundnlq import data

    windows = data.windows(queries, store, config.model.max_length)
    seconds = config.data.feature_stride / config.data.fps
    found: list[list[np.ndarray]] = [[] for _ in queries]
    for window, segments, scores, there in zip(
        windows, outputs["segments"], outputs["scores"], outputs["there"], strict=True
    ):
        there = np.asarray(there, bool)
        times = np.asarray(segments, np.float64)[there] + window.start * seconds
        found[window.query].append(np.concatenate([times, np.asarray(scores, np.float64)[there][:, None]], 1))
    most, sigma = outputs["scores"].shape[1], config.decoding.sigma
    merged = [parts[0] if len(parts) == 1 else merge(parts, most, sigma) for parts in found]
    whole = [np.array([[0.0, query.duration, 0.0]]) for query in queries]
    return [moments if len(moments) else all_of_it for moments, all_of_it in zip(merged, whole, strict=True)]


def merge(windows: Sequence[np.ndarray], most: int, sigma: float) -> np.ndarray:
    """The best moments of several windows of a clip, each suppressed by itself already: `[M, 3]` each -> `[K, 3]`.

    A moment lowers the scores of those of other windows that overlap it, by exp(-overlap^2 / sigma) as within one.
    """
    moments = np.concatenate(windows)
    origin = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
    picked = []
    while len(moments) and len(picked) < most:
        best = int(moments[:, 2].argmax())
        chosen, source = moments[best], origin[best]
        picked.append(chosen)
        moments, origin = np.delete(moments, best, 0), np.delete(origin, best)
        shared = np.maximum(np.minimum(moments[:, 1], chosen[1]) - np.maximum(moments[:, 0], chosen[0]), 0)
        union = moments[:, 1] - moments[:, 0] + chosen[1] - chosen[0] - shared
        overlap = shared / np.maximum(union, 1e-6)
        moments = moments.copy()
        moments[:, 2] *= np.where(origin == source, 1, np.exp(-(overlap**2) / sigma))
    return np.array(picked).reshape(-1, 3)


def query_line(query: Any, moments: np.ndarray) -> dict[str, Any]:
    """A question with its moments, as a JSON object."""
    return {"qid": query.qid, "video": query.clip, "query": query.text, "seconds": moments.tolist()}


def submission(queries: Sequence[Any], moments: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """The Ego4D challenge's result file; None where a question's name is not ANNOTATION_INDEX."""
    results = []
    for query, found in zip(queries, moments, strict=True):
        annotation, _, index = query.qid.partition("_")
        if not index.isdigit():
            return None
        results.append(
            {
                "query_idx": int(index),
                "annotation_uid": annotation,
                "predicted_times": found[:SUBMITTED].tolist(),
                "clip_uid": query.clip,
            }
        )
    return {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": results}


def predict(
    config: ConfigDict,
    find_moments: Callable[..., Any],
    stores: Callable[[str], Any],
    make_rules: Callable[..., Any],
    variables: Variables,
    requests: Sequence[Mapping[str, Any]],
    top_k: int,
) -> Predictions:
    """The best moments for every question; see `task.Predict`. A request's `vector` is `[L, C]`, a row a word.

    Args:
      config: `config.predict` says where clips and questions lie.
      find_moments: (options, variables, batch) -> moments.
      stores: Clips by directory.
      make_rules: Sizes from the config.
      variables: Parameters.
      requests: Clips, or questions about them.
      top_k: Moments of each question.

    Raises:
      DataError: for data that cannot be used.
      ConfigError: for words' features of another size, or made otherwise than those of training.
    """
    from vlm_jax.systems.groundnlq import data

    rules, store = make_rules(config, train=False), stores(config.predict.features)
    known: list[Any] = []
    if any("vector" not in request for request in requests):
        source = config.data.text_source
        known = data.load_queries(config.predict.queries, config.predict.split, rules, source)
    asked, missing = _asked(requests, known, config)
    absent = store.read({query.clip for query in asked})
    queries = []
    for query in asked:
        if query.clip in absent:
            missing.append((query.qid, "clip without features", f"{query.clip} is not in {config.predict.features}"))
            continue
        seconds = store.length(query.clip) * rules.feature_stride / rules.fps
        queries.append(dataclasses.replace(query, duration=query.duration or seconds))
    if not queries:
        return Predictions([], {}, missing)
    find = jax.jit(lambda variables, batch: find_moments(make_decoding(config, top_k), variables, batch))
    pipeline = data.EvaluationPipeline(queries, store, rules, DataShard(batch_size=BATCH))
    parts: list[dict[str, np.ndarray]] = []
    for batch in pipeline:
        mask = batch.pop("mask").astype(bool)
        index = batch.pop("index")
        outputs = jax.device_get(find(variables, batch)) | {"index": index}
        parts.append({name: value[mask] for name, value in outputs.items()})
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(outputs.pop("index"), kind="stable")
    found = by_query(config, queries, store, {name: value[order] for name, value in outputs.items()})
    lines = [query_line(query, moments) for query, moments in zip(queries, found, strict=True)]
    file = submission(queries, found)
    return Predictions(lines, {FILE: json.dumps(file)} if file else {}, missing)


def _asked(
    requests: Sequence[Mapping[str, Any]], known: Sequence[Any], config: ConfigDict
) -> tuple[list[Any], list[tuple[str, str, str]]]:
    """What is asked, each question with its words' features, and what cannot be."""
    from vlm_jax.systems.groundnlq import data

    by_clip: dict[str, list[Any]] = {}
    for query in known:
        by_clip.setdefault(query.clip, []).append(query)
    found, missing = [], []
    for number, request in enumerate(requests):
        clip, text = request["video"], request.get("query", "")
        name = str(request.get("qid", f"{clip}#{number}"))
        if "vector" not in request:
            own = by_clip.get(clip, [])
            matches = [query for query in own if "query" not in request or (query.qid, query.text) == (name, text)]
            # Asked in the same words, under another name.
            matches = matches or [dataclasses.replace(query, qid=name) for query in own if query.text == text][:1]
            found += matches
            if not matches:
                place = f"{config.predict.queries} ({config.predict.split})"
                reason = "question without words' features" if text else "clip without questions"
                missing.append((name if text else clip, reason, f"{text!r} is not in {place}" if text else place))
            continue
        tokens = np.asarray(request["vector"], np.float32)
        if tokens.ndim != 2 or tokens.shape[1] != config.model.text_dim:
            raise ConfigError(
                f"question {name}: features of words of shape {list(tokens.shape)}, the model takes "
                f"[L, {config.model.text_dim}] (config.model.text_dim)"
            )
        if request.get("source", "") != config.data.text_source:
            raise ConfigError(
                f"question {name}: its words' features were made with {request.get('source', '')!r}, the config asks "
                f"for {config.data.text_source!r} (config.data.text_source)"
            )
        most = config.text.max_tokens
        if not 0 < len(tokens) <= most:
            missing.append((name, "too few or too many words", f"{len(tokens)}, expected 1 to {most}"))
            continue
        if not np.isfinite(tokens).all():
            missing.append((name, "words' features not finite", text))
            continue
        found.append(data.Query(name, clip, text, 0.0, np.zeros((0, 2)), tokens))
    return found, missing

"""Answers of GroundNLQ: moments of questions, merged from windows of their clips, and result files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError
from vlm_jax.ops.nms import DECAYS
from vlm_jax.systems.groundnlq import samples
from vlm_jax.systems.groundnlq.decoding import SUPPRESSIONS, Decoding
from vlm_jax.systems.groundnlq.samples import ClipFeatures, Question

SUBMITTED = 10
"""Largest number of moments per question in the challenge's result file."""


def make_decoding(config: ConfigDict, max_moments: int | None = None) -> Decoding:
    """Return the decoding options of a config, with `max_moments` in place of the config's if given.

    Raises:
      ConfigError: If suppression or decay is unknown, or if voting is combined with suppression per class.
    """
    wanted = dict(config.decoding)
    for key, known in (("suppression", SUPPRESSIONS), ("decay", DECAYS)):
        if wanted[key] not in known:
            raise ConfigError(f"config.decoding.{key}: {wanted[key]!r} is not one of {', '.join(known)}")
    if wanted["vote"] and wanted["per_class"]:
        raise ConfigError(f"config.decoding.vote: {wanted['vote']}, expected 0 where config.decoding.per_class is set")
    # Targets lack this shift; the released models were nevertheless evaluated with it.
    shift = 0.5 * config.data.feature_stride if wanted.pop("half_feature_shift") else 0.0
    if max_moments is not None:
        wanted["max_moments"] = max_moments
    grid = {"feature_stride": config.data.feature_stride, "shift": shift, "fps": config.data.fps}
    return Decoding(**wanted, **grid)


def by_query(
    config: ConfigDict, queries: Sequence[Question], store: ClipFeatures, outputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Return the moments of every question, best first.

    A question without any moment gets its whole clip with score 0.

    Args:
      config: Config of the task.
      queries: Questions.
      store: Features of their clips.
      outputs: `segments`, `scores` and `there` of all windows, in the order of `samples.windows`.

    Returns:
      `[K, 3]` per question: start and end in seconds, and score; K is at least 1.
    """
    windows = samples.windows(queries, store, config.model.max_length)
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
    """Merge the moments of several windows of a clip by soft-NMS across windows; each was suppressed by itself before.

    Args:
      windows: Moments of each window, `[M, 3]` (start, end, score).
      most: Largest number of moments, K.
      sigma: Width of the decay: a moment multiplies scores of other windows' moments by exp(-IoU^2 / sigma).

    Returns:
      `[K, 3]`, best first.
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


def query_line(query: Question, moments: np.ndarray) -> dict[str, Any]:
    """Return a question and its moments `[K, 3]` as a JSON object."""
    return {"qid": query.qid, "video": query.clip, "query": query.text, "seconds": moments.tolist()}


def submission(queries: Sequence[Question], moments: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """Return the result file of the Ego4D challenge; None if a question's name is not ANNOTATION_INDEX."""
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

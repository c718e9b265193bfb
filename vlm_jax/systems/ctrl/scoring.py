"""Scoring of CTRL: comparison of all windows with all sentences, and suppression in each row of scores."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.ops import nms
from vlm_jax.systems.ctrl.metrics import SUPPRESSION_MARGIN, Answers
from vlm_jax.systems.ctrl.model import Ctrl
from vlm_jax.train import sharding
from vlm_jax.train.scoring import Score, score_matrix
from vlm_jax.types import Variables

LEAST_WINDOWS = 64
"""Smallest number that sets of windows are padded to; larger sets are padded to its double, its quadruple and so on, so
that few sizes are compiled."""
SENTENCES = 8
"""Factor to a multiple of which the number of sentences is padded."""

Compare = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""Function from windows `[M, D]` and sentences `[N, D]`, embedded, to `[N, M, 3]` on process 0, None on the others."""


def make_comparison(
    model: Ctrl, variables: Variables, mesh: Mesh | None = None, *, sentences: int = 16, windows: int = 256
) -> Compare:
    """Return a function that compares any number of sentences and windows, compiled once.

    Args:
      model: Network.
      variables: Variables of the network; only the comparison's parameters are used.
      mesh: Mesh of devices that share the work; all of its processes call the function. None for the default device.
      sentences: Number of sentences that are compared at the same time.
      windows: Number of windows that are compared at the same time; memory grows with sentences x windows.
    """
    params = sharding.replicate(mesh, {name: variables["params"][name] for name in ("hidden", "output")})
    compare, blocks = _comparison(model), {"row_block": sentences, "column_block": windows}
    return lambda clips, texts: score_matrix(compare, params, texts, clips, mesh, **blocks)


@functools.cache
def _comparison(model: Ctrl) -> Score:
    """Return the comparison as one object for all calls, so that a later evaluation does not compile it again."""
    return lambda params, sentences, clips: model.apply({"params": params}, clips, sentences, method="compare")


def pick(segments: np.ndarray, scores: np.ndarray, limit: float, max_picks: int) -> np.ndarray:
    """Return the top K segments of every row after greedy NMS in float64.

    Segments whose IoU with a better one exceeds `limit` are dropped. Of equal scores the later segment is the better
    one. Segments that end before they begin stay, and of several segments of length 0 (0 / 0) only one stays
    (PaddlePaddle/models release/1.8, `tall_metrics.py`).

    Args:
      segments: Start and end, `[S, W, 2]`.
      scores: Scores, `[S, W]`.
      limit: Largest IoU that is kept.
      max_picks: Number of segments per row, K.

    Returns:
      Positions along W, int32 `[S, K]`, -1 where there are no more.
    """
    rows, count = scores.shape
    width = LEAST_WINDOWS
    while width < count:
        width *= 2
    height = -(-max(rows, 1) // SENTENCES) * SENTENCES
    with jax.enable_x64(True):
        padded = np.zeros((height, width, 2)), np.zeros((height, width)), np.zeros((height, width), bool)
        padded[0][:rows, :count], padded[1][:rows, :count], padded[2][:rows, :count] = segments, scores, True
        return np.asarray(_pick(*padded, np.float64(limit), max_picks))[:rows]


def answer(
    video: str,
    windows: np.ndarray,
    truth: np.ndarray,
    outputs: np.ndarray,
    thresholds: Sequence[float],
    max_picks: int,
) -> Answers:
    """Return the best segments for the sentences of one video.

    Args:
      video: Name of the video.
      windows: First and last frame of every window, `[W, 2]`.
      truth: True spans, `[S, 2]`, frames.
      outputs: Outputs of the model, `[S, W, 3]` (score, start offset, end offset).
      thresholds: IoU thresholds of a right answer; suppression is repeated for each.
      max_picks: Number of segments per sentence, K.

    Raises:
      ValueError: If a score or an offset is not finite.
    """
    if not np.isfinite(outputs).all():
        raise ValueError(f"evaluation: {video}: a score or an offset is not a finite number")
    segments = np.asarray(windows, np.float64) + outputs[..., 1:].astype(np.float64)
    scored = np.concatenate([segments, outputs[..., :1].astype(np.float64)], -1)
    padded = np.concatenate([scored, np.full((len(scored), 1, 3), np.nan)], 1)  # the row that index -1 picks
    best = {}
    for threshold in thresholds:
        picks = pick(segments, outputs[..., 0], threshold - SUPPRESSION_MARGIN, max_picks)
        best[threshold] = np.take_along_axis(padded, picks[..., None], 1)
    return Answers(video, np.asarray(truth, np.float64).reshape(-1, 2), len(windows), best)


@functools.partial(jax.jit, static_argnames="max_picks")
def _pick(segments: jax.Array, scores: jax.Array, mask: jax.Array, limit: jax.Array, max_picks: int) -> jax.Array:
    def row(segments: jax.Array, scores: jax.Array, mask: jax.Array) -> jax.Array:
        kept = nms.greedy(segments, scores, mask, lambda overlap: overlap <= limit, max_picks, last_of_equals=True)
        return kept.index

    return jax.vmap(row)(segments, scores, mask)

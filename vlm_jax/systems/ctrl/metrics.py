"""Metrics and result files of CTRL (PaddlePaddle/models release/1.8, `metrics/tall_metrics`)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.metrics.moments import hits, hull_overlap

SUPPRESSION_MARGIN = 0.05
"""Difference between the IoU threshold of a right answer and the IoU threshold of its NMS."""
VERSION = "VERSION 1.0"


class Answers(NamedTuple):
    """Segments predicted for the S sentences of one video.

    Attributes:
      video: Name of the video.
      truth: True segments, `[S, 2]`, frames.
      windows: Number of windows of the video, W.
      best: Top K segments `[S, K, 3]` (start and end in frames, score) by IoU threshold, best first, NaN where there
        are no more.
    """

    video: str
    truth: np.ndarray
    windows: int
    best: Mapping[float, np.ndarray]


def correct_counts(answers: Answers, ks: Sequence[int]) -> np.ndarray:
    """Return the number of sentences with a right answer among the first k: `[len(best), len(ks)]`.

    An answer is right if its overlap with the truth is the threshold or more.
    """
    rows = []
    for threshold, segments in answers.best.items():
        overlap = hull_overlap(segments, answers.truth[:, None])
        rows.append(hits(overlap, [threshold], ks, strict=False)[0].sum(-1))
    return np.array(rows)


def summarize(
    answers: Sequence[Answers], ks: Sequence[int], *, count_videos_without_windows: bool = False
) -> dict[str, float]:
    """Return recall at K over all sentences, `mIoU` of the best segments, and numbers of sentences.

    Recalls are fractions: `R@{k},IoU={threshold}`, and `mean_R@{k}` over all thresholds.

    Args:
      answers: Answers, one entry per video.
      ks: Numbers of segments that count, K.
      count_videos_without_windows: If true, sentences of videos without windows count as wrong (jiyanggao/TALL); else
        they do not count (PaddlePaddle/models). Their number is `sentences_without_windows`.

    Raises:
      ValueError: If there is no sentence to score.
    """
    without = sum(len(answer.truth) for answer in answers if not answer.windows)
    judged = [answer for answer in answers if len(answer.truth) and (answer.windows or count_videos_without_windows)]
    sentences = sum(len(answer.truth) for answer in judged)
    if not sentences:
        raise ValueError(f"evaluation: no sentence to judge ({without} are of videos without windows)")
    counts = sum(correct_counts(answer, ks) for answer in judged)
    thresholds = list(judged[0].best)
    metrics = {
        f"R@{k},IoU={threshold}": float(counts[row, column] / sentences)
        for row, threshold in enumerate(thresholds)
        for column, k in enumerate(ks)
    }
    means = {f"mean_R@{k}": float(counts[:, column].mean() / sentences) for column, k in enumerate(ks)}
    first = [np.nan_to_num(hull_overlap(answer.best[thresholds[0]][:, 0], answer.truth)) for answer in judged]
    return {
        **metrics,
        **means,
        "mIoU": float(np.concatenate(first).mean()),
        "sentences": float(sentences),
        "sentences_without_windows": float(without),
    }


def results_text(metrics: Mapping[str, float]) -> str:
    """Return the content of the reference's `TALL_test_res_.json`."""
    return _text({"best_R1_IOU5": metrics["R@1,IoU=0.5"], "best_R5_IOU5": metrics["R@5,IoU=0.5"]})


def predictions_text(answers: Sequence[Answers], threshold: float = 0.5) -> str:
    """Return the content of the reference's `TALL_infer_res_.json`.

    It lists by video `[number, start, end]` of each sentence's best segment, in frames.
    """
    return _text(
        {
            answer.video: [
                [number, float(start), float(end)]
                for number, (start, end, _) in enumerate(answer.best[threshold][:, 0])
                if not np.isnan(start)
            ]
            for answer in answers
            if answer.windows and len(answer.truth)
        }
    )


def query_line(qid: str, video: str, text: str, best: np.ndarray, fps: float, num_frames: int = 0) -> dict[str, Any]:
    """Return a sentence and its segments as a JSON object.

    Segments are given in frames, and in seconds if `fps` is known. If `num_frames` is known, they are clipped to the
    video, and those that lie outside are dropped; the reference's files keep all segments.

    Args:
      qid: Name of the sentence.
      video: Name of the video.
      text: The sentence itself.
      best: Segments, `[K, 3]` (start and end in frames, score), best first, NaN where there are no more.
      fps: Frames per second, 0 if not known.
      num_frames: Number of frames of the video, 0 if not known.
    """
    if num_frames:
        best = np.concatenate([np.clip(best[:, :2], 0, num_frames), best[:, 2:]], 1)
        best = best[best[:, 1] > best[:, 0]]
    found = [segment for segment in best.tolist() if segment[0] == segment[0]]
    line = {"qid": qid, "video": video, "query": text, "frames": found}
    if fps:
        line["seconds"] = [[start / fps, end / fps, score] for start, end, score in found]
    return line


def _text(results: Mapping[str, object]) -> str:
    return json.dumps({"version": VERSION, "results": results, "external_data": {}}, indent=2)

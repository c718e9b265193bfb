"""How CTRL's answers are counted and written (PaddlePaddle/models release/1.8, `metrics/tall_metrics`)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.metrics.moments import hits, hull_overlap

SUPPRESSION_MARGIN = 0.05
"""What the overlap that suppression allows is below the threshold of a right answer."""
VERSION = "VERSION 1.0"


class Answers(NamedTuple):
    """What was found for the sentences of one video.

    Attributes:
      video: Its name.
      truth: `[S, 2]`, frames.
      windows: W, how many there were to choose from.
      best: For each threshold of overlap the picks `[S, K, 3]` (start, end, score), best first, NaN where there are no
        more.
    """

    video: str
    truth: np.ndarray
    windows: int
    best: Mapping[float, np.ndarray]


def correct_counts(answers: Answers, ks: Sequence[int]) -> np.ndarray:
    """How many sentences have a right answer among the first k: `[len(best), len(ks)]`.

    A pick is right if its overlap with the truth is the threshold or more.
    """
    rows = []
    for threshold, segments in answers.best.items():
        overlap = hull_overlap(segments, answers.truth[:, None])
        rows.append(hits(overlap, [threshold], ks, strict=False)[0].sum(-1))
    return np.array(rows)


def summarize(
    answers: Sequence[Answers], ks: Sequence[int], *, count_videos_without_windows: bool = False
) -> dict[str, float]:
    """Recall over all sentences, `mIoU` of the best segment, and counts.

    Recalls are fractions: `R@1,IoU=0.5` and so on, and `mean_R@1` and so on over all thresholds.

    Args:
      answers: One a video.
      ks: Of the recall.
      count_videos_without_windows: Whether their sentences count, as wrong (jiyanggao/TALL), or not at all
        (PaddlePaddle/models); there are `sentences_without_windows` of them.

    Raises:
      ValueError: where there is no sentence to judge.
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
    """The reference's `TALL_test_res_.json`."""
    return _text({"best_R1_IOU5": metrics["R@1,IoU=0.5"], "best_R5_IOU5": metrics["R@5,IoU=0.5"]})


def predictions_text(answers: Sequence[Answers], threshold: float = 0.5) -> str:
    """The reference's `TALL_infer_res_.json`: `[number, start, end]` of each sentence's best segment, by video."""
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
    """Return a sentence with its segments `[K, 3]` (start, end, score; NaN where there are no more), best first.

    In frames, and in seconds where frames per second are known. Where the number of frames is known, segments are cut
    at the ends of the video, and those that lie beyond are left out; the reference's own files hold them as they are.
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

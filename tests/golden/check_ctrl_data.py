"""Checkers of the golden cases of ctrl that need no network: windows, pairs, context, metrics."""

import re

import numpy as np

from vlm_jax.interop.torch_files import load_pickle
from vlm_jax.metrics.moments import hull_overlap
from vlm_jax.systems.ctrl import metrics, windows
from vlm_jax.systems.ctrl.interop import clip_sentences
from vlm_jax.systems.ctrl.scoring import answer, pick

TRAIN, TEST = (64, 128, 256, 512), (128, 256)


def check_sliding_windows(case, precision):
    for split, lengths in (("train", TRAIN), ("test", TEST)):
        rows = [
            (video, *window)
            for video, frames in enumerate(case["in/frames"])
            for window in windows.sliding_windows(int(frames), lengths)
        ]
        np.testing.assert_array_equal(rows, case[f"out/{split}/windows"])
        counts, contexts = np.zeros(len(lengths), int), np.zeros((len(lengths), 2), int)
        for frames in case["in/tacos/frames"]:
            made = windows.sliding_windows(int(frames), lengths)
            length = np.diff(made)[:, 0]
            found = [side[:, 0] != np.arange(len(made)) for side in windows.context(made)]
            for row, wanted in enumerate(lengths):
                counts[row] += (length == wanted).sum()
                contexts[row] += [side[length == wanted].sum() for side in found]
        np.testing.assert_array_equal(counts, case[f"out/tacos/{split}/count_per_length"])
        np.testing.assert_array_equal(contexts, case[f"out/tacos/{split}/left_right_context_count_per_length"])


def check_iou_niol(case, precision):
    tolerance = case.tolerance["*"]["atol"]
    overlap, outside = windows.overlap_and_outside(case["in/window"], case["in/gt"])
    np.testing.assert_allclose(overlap, case["out/iou"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(outside, case["out/niol"], rtol=0, atol=tolerance)
    clamped = np.maximum(case["out/iou"], 0)
    np.testing.assert_allclose(hull_overlap(case["in/window"], case["in/gt"]), clamped, rtol=0, atol=tolerance)


def read_moments(case, dim):
    """Return names, vectors and parsed names of the sentences in a case's pickle."""
    content = load_pickle(case["in/clip_sentvec_pickle"].tobytes(), "latin1")
    found = [(clip.name, vector) for clip in clip_sentences(content, dim) for vector in clip.vectors]
    return [name for name, _ in found], np.stack([vector for _, vector in found]), [windows.parse(n) for n, _ in found]


def check_select_pairs(case, precision):
    names, vectors, spans = read_moments(case, 6)
    np.testing.assert_array_equal(names, case["out/pairs/sentence"])
    np.testing.assert_array_equal(vectors, np.arange(len(names))[:, None] * np.ones((1, 6)))
    frames = load_pickle(case["in/video_allframes_info_pickle"].tobytes(), "latin1")
    assert all(isinstance(name, str) and isinstance(count, int) for name, count in frames.items())
    window_videos = [f"{video}.avi" for video in case["in/windows/video"]]
    # The reference reads the files in the order of their names.
    order = sorted(range(len(window_videos)), key=lambda n: file_name(window_videos[n], case["in/windows/span"][n]))
    moments = np.array([span[1:] for span in spans])
    chosen = windows.select_pairs(
        [window_videos[n] for n in order], case["in/windows/span"][order], [span.video for span in spans], moments
    )
    rows = np.array(order)[chosen[:, 0]]
    offsets = moments[chosen[:, 1]] - case["in/windows/span"][rows]
    np.testing.assert_array_equal(np.column_stack([chosen[:, 1], rows, offsets]), case["out/selected"])


def file_name(video, span):
    return f"{video}_{span[0]}_{span[1]}.npy"


def check_context_windows(case, precision):
    tolerance = case.tolerance["*"]["atol"]
    listed = windows.window_files(f"{name}.npy" for name in case["in/windows/name"])
    features = dict(zip(case["in/windows/name"], case["in/windows/feat"], strict=True))
    features = np.stack([features[name.removesuffix(".npy")] for name in listed.names])
    position = {name.removesuffix(".npy"): row for row, name in enumerate(listed.names)}
    visual = {count: surround(listed, features, count) for count in case.config["context_num"]}
    width = case.config["feats_dimen"]
    for count, made in visual.items():
        rows = [position[name] for name in case["in/windows/name"]]
        left, right = made[rows, :width], made[rows, 2 * width :]
        np.testing.assert_allclose(left, case[f"out/context{count}/left"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(right, case[f"out/context{count}/right"], rtol=0, atol=tolerance)
    names, vectors, spans = read_moments(case, case.config["sent_vec_dim"])
    moments = np.array([span[1:] for span in spans])
    chosen = windows.select_pairs(listed.videos, listed.spans, [span.video for span in spans], moments)
    offsets = moments[chosen[:, 1]] - listed.spans[chosen[:, 0]]
    order = np.lexsort((vectors[chosen[:, 1], 0], offsets[:, 1], offsets[:, 0]))
    np.testing.assert_allclose(offsets[order], case["out/train/offset"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(visual[1][chosen[order, 0]], case["out/train/visual"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(vectors[chosen[order, 1]], case["out/train/sentence"], rtol=0, atol=tolerance)
    # Evaluation pairs every sentence of a video with every window of it.
    rows = []
    for video in sorted({span.video for span in spans}):
        own = [row for row, name in enumerate(listed.videos) if name == video]
        sentences = [row for row, span in enumerate(spans) if span.video == video]
        rows += [
            (video, names[sentence], k, t, sentence, row)
            for k, sentence in enumerate(sentences)
            for t, row in enumerate(own)
        ]
    for number, (video, truth, k, t, sentence, row) in enumerate(rows):
        name = listed.names[row].removesuffix(".npy")
        expected = [case[f"out/eval/{key}"][number] for key in ("video", "gt", "window")]
        assert [video, truth, name] == expected
        np.testing.assert_array_equal((k, t), case["out/eval/k_t"][number])
        np.testing.assert_array_equal(listed.spans[row], case["out/eval/start_end"][number])
        np.testing.assert_allclose(visual[1][row], case["out/eval/visual"][number], rtol=0, atol=tolerance)
        np.testing.assert_allclose(vectors[sentence], case["out/eval/sentence"][number], rtol=0, atol=tolerance)
    assert len(rows) == len(case["out/eval/video"])


def surround(listed, features, count):
    """Return the input features of every window, video by video."""
    made = np.zeros((len(features), 3 * features.shape[1]), np.float32)
    for video in set(listed.videos):
        rows = np.array([row for row, name in enumerate(listed.videos) if name == video])
        sides = windows.context(listed.spans[rows], count)
        made[rows] = windows.visual_features(features[rows], np.arange(len(rows)), *sides)
    return made


def check_metrics(case, precision):
    answers, total = [], 0
    for number, video in enumerate(case["in/video"]):
        given = case.group(f"in/{number}/")
        outputs = np.concatenate([given["score"][..., None], given["offset"]], -1)
        segments = given["window"] + given["offset"].astype(np.float64)
        thresholds = [float(name[4:]) for name in case.group(f"out/{number}/") if name.startswith("nms_")]
        for threshold in thresholds:
            expected = case[f"out/{number}/nms_{threshold}"]
            picks = pick(segments, given["score"], threshold - 0.05, expected.shape[1] + 1)
            np.testing.assert_array_equal(picks, np.pad(expected, ((0, 0), (0, 1)), constant_values=-1))
        made = answer(str(video), given["window"], given["gt"], outputs, sorted(thresholds), 10)
        counts = metrics.correct_counts(made, (1, 5, 10))
        np.testing.assert_array_equal(counts, case[f"out/{number}/correct"])
        answers.append(made)
        total = total + counts
    np.testing.assert_array_equal(total, case["out/total_correct"])
    summary = metrics.summarize(answers, (1, 5, 10))
    assert summary["sentences"] == case["out/num_sentences"]
    for row, threshold in enumerate(sorted(thresholds)):
        for column, k in enumerate((1, 5, 10)):
            assert summary[f"R@{k},IoU={threshold}"] == total[row, column] / summary["sentences"]
    assert metrics.results_text(summary) == str(case["out/test_json"])
    assert metrics.predictions_text(answers) == str(case["out/infer_json"])
    for name, expected in case.group("out/hand/").items():
        hand, limit = re.fullmatch(r"(\w+)/([\d.]+)", name).groups()
        start, end, score = case[f"in/hand/{hand}"]
        limit = 1 / 3 if limit == "0.3333" else float(limit)
        picks = pick(np.stack([start, end], -1)[None], score[None], limit, len(expected) + 1)[0]
        np.testing.assert_array_equal(picks, [*expected, -1])


CHECKERS = {
    "sliding_windows": check_sliding_windows,
    "iou_niol": check_iou_niol,
    "select_pairs": check_select_pairs,
    "context_windows": check_context_windows,
    "metrics": check_metrics,
}

"""Checkers of the golden cases of milnce that need no network: schedule, data, metrics."""

import csv
import io
from fractions import Fraction

import jax
import numpy as np
from cases import relative_error

from vlm_jax import config as configs
from vlm_jax.metrics import retrieval
from vlm_jax.systems.milnce import captions
from vlm_jax.systems.milnce.linear_probe import linear_probe
from vlm_jax.systems.milnce.task import make_task
from vlm_jax.text import word_list
from vlm_jax.train import sharding
from vlm_jax.train.schedule import make_schedule
from vlm_jax.video import decode, sampling, write


def check_lr_schedule(case, precision):
    config = configs.load("configs/milnce_howto100m.py")
    cases = {name.split("/")[0] for name in case.group("in/")}
    with jax.enable_x64(True):
        for name in cases:
            rate, warmup, total = case[f"in/{name}/lr_warmup_total"]
            config.schedule.learning_rate, config.schedule.warmup_steps = float(rate), int(warmup)
            ours = make_schedule(config.schedule, int(total), 1)(case[f"in/{name}/step"])
            np.testing.assert_allclose(
                ours, case[f"out/{name}/lr"], rtol=case.tolerance["rtol"], atol=case.tolerance["atol"]
            )


def check_caption_candidates(case, precision):
    from data_prep.milnce.narrated import read_captions

    vocabulary = {word: index for index, word in enumerate(case.manifest["vocabulary"], start=1)}
    wanted = case.config
    for table, rows in case.manifest["captions"].items():
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerows([["index", "start", "end", "text"], *([i, *row] for i, row in enumerate(rows))])
        read = read_captions(io.StringIO(buffer.getvalue()), table)
        start, end = read.start, read.end
        for count in wanted["candidates"]:
            expected_first = case[f"out/K{count}/{table}/first_candidate"]
            expected_ids = case[f"out/K{count}/{table}/token_ids"]
            for index in range(len(rows)):
                if count > 1:
                    assert captions.first_candidate(start, end, index, count) == expected_first[index]
                bag = captions.candidates(start, end, index, count)
                ids = [word_list.encode(read.text[number], vocabulary, wanted["max_words"]) for number in bag]
                np.testing.assert_array_equal(np.reshape(ids, expected_ids[index].shape), expected_ids[index])
        for index, expected in enumerate(case[f"out/clip/{table}"]):
            interval = captions.clip_interval(start[index], end[index], wanted["min_time"])
            last = captions.seek_range(interval, wanted["num_sec"])[1]
            assert (*interval, last) == tuple(expected)


def check_tokenise(case, precision):
    vocabulary = {word: index for index, word in enumerate(case.manifest["vocabulary"], start=1)}
    sentences = [float("nan") if isinstance(item, dict) else item for item in case.manifest["sentences"]]
    for name, expected in case.group("out/").items():
        length = case.config["max_words"][
            name.rsplit("_", 1)[0].removeprefix("train_model_raw_text") or "model_raw_text"
        ]
        raw = "raw_text" in name or "released" in name
        chosen = [item for item in sentences if isinstance(item, str)] if raw else sentences
        ours = [word_list.encode(item, vocabulary, length, lower="released" in name) for item in chosen]
        np.testing.assert_array_equal(np.stack(ours), expected)


def check_fps_sampling(case, precision, tmp="/tmp"):
    """Check frames by decoding lossless videos whose frames show their number, and by the sampling rule alone."""
    import tempfile
    from pathlib import Path

    fps, count = case.config["fps"], case.config["num_frames"]
    read = Fraction(str(case.config["read_seconds"]))
    rows = zip(case["in/source_fps_frames_seek"], case["out/frame_ids"], strict=True)
    for (rate, frames, seek), expected in rows:
        rate, frames, seek = Fraction(str(rate)).limit_denominator(1001), int(frames), Fraction(str(seek))
        first = -(-seek * rate // 1)
        times = [Fraction(n) / rate - seek for n in range(int(first), frames)]
        length = min(read, Fraction(frames) / rate - seek)
        chosen = sampling.resample(times, fps, length) if times and length > 0 else []
        ids = [int(first) + index for index in chosen][:count]
        assert ids + [-1] * (count - len(ids)) == list(expected)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "numbered.mkv"
            write.write_video(path, numbered_frames(frames), rate, lossless=True)
            clip = decode.read_clip(path, start=float(seek), num_frames=count, fps=fps, filters="")
        assert [frame_number(frame) for frame in clip] == list(expected)


def numbered_frames(count):
    """Return frames `[N, 16, 96, 3]` whose columns show the bits of their number plus one."""
    frames = np.zeros((count, 16, 96, 3), np.uint8)
    for number in range(count):
        for bit in range(12):
            if (number + 1) >> bit & 1:
                frames[number, :, bit * 8 : bit * 8 + 8] = 255
    return frames


def frame_number(frame):
    """Return the number that a frame shows, -1 for a black frame."""
    bits = frame[8, 4::8, 0] > 127
    return int(sum(1 << bit for bit, value in enumerate(bits) if value)) - 1


def check_eval_windows(case, precision):
    seconds = case.config["num_sec"]
    tolerance = float(case.tolerance["clip_starts"].split()[-1])
    for name, intervals in case.group("in/interval_seconds/").items():
        for (start, end), expected in zip(intervals, case[f"out/clip_starts/{name}"], strict=True):
            ours = sampling.clip_starts(start, end, len(expected), seconds)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)
    for name, lengths in case.group("in/hmdb_num_frames/").items():
        for length, expected in zip(lengths, case[f"out/hmdb_frame_ids/{name}"], strict=True):
            ours = sampling.frame_windows(int(length), *expected.shape)
            np.testing.assert_array_equal(ours + 1, expected)


def check_retrieval_metrics(case, precision):
    for name, similarity in case.group("in/").items():
        ours = retrieval.reference_metrics(similarity)
        values = [ours["R@1"], ours["R@5"], ours["R@10"], ours["median_rank"]]
        np.testing.assert_allclose(values, case[f"out/{name}"], rtol=0, atol=case.tolerance["atol"])
        assert ours["entries"] == case[f"out/{name}/num_entries"]


def check_retrieval_protocol(case, precision):
    """Check retrieval through the evaluator's own scoring."""
    config = configs.load("configs/milnce_quickstart.py")
    evaluator = make_task(config).evaluators["clips"]
    outputs = {"video": case["in/window_video_embeddings"].mean(1), "text": case["in/text_embeddings"]}
    similarity = np.asarray(evaluator.score_fn({}, outputs, sharding.make_mesh(config.mesh))["similarity"])
    np.testing.assert_allclose(similarity, case["out/similarity"], rtol=1e-5, atol=1e-5)
    ours = evaluator.summarize({"similarity": similarity})
    assert [ours["R@1"], ours["R@5"], ours["R@10"], ours["median_rank"]] == list(case["out/metrics"])


def check_hmdb_linear(case, precision):
    features = case["in/features_float16"].astype(np.float32)
    labels = case.manifest["labels"]
    accuracies = []
    for number, split in enumerate(case["in/splits"], start=1):
        probe = linear_probe(features, labels, split == 1, split == 2, penalty=case.config["C"])
        accuracies.append(probe.accuracy)
        bounds = {"coef": 1e-2, "summed_decision": 2e-3}
        assert relative_error(probe.weights, case[f"out/split{number}/coef"]) < bounds["coef"]
        assert relative_error(probe.decisions, case[f"out/split{number}/summed_decision"]) < bounds["summed_decision"]
    assert accuracies == list(case["out/accuracy"])


CHECKERS = {
    "lr_schedule": check_lr_schedule,
    "caption_candidates": check_caption_candidates,
    "tokenise": check_tokenise,
    "fps_sampling": check_fps_sampling,
    "eval_windows": check_eval_windows,
    "retrieval_metrics": check_retrieval_metrics,
    "retrieval_protocol": check_retrieval_protocol,
    "hmdb_linear": check_hmdb_linear,
}

"""Checkers of the golden cases of milnce."""

import csv
import functools
import io
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from cases import relative_error

from vlm_jax import config as configs
from vlm_jax.interop import milnce as names
from vlm_jax.interop.rules import flatten
from vlm_jax.losses.nce import mil_nce
from vlm_jax.metrics import retrieval
from vlm_jax.metrics.linear_probe import linear_probe
from vlm_jax.models.milnce import S3D, TextTower
from vlm_jax.ops.convolution import DIRECT, FACTORISED, convolve, space_to_depth
from vlm_jax.tasks.milnce import make_task
from vlm_jax.text import captions, word_list
from vlm_jax.train.optimizer import make_optimizer
from vlm_jax.train.schedule import make_schedule
from vlm_jax.video import decode, sampling, write


def channels_last(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def limit(case, precision, name=""):
    """The manifest's tolerance for an array."""
    tolerance = case.tolerance[f"{precision}_run"]
    if not isinstance(tolerance, dict):
        return tolerance
    exact = [value for key, value in tolerance.items() if re.fullmatch(key.replace("*", ".*"), name)]
    return exact[0] if exact else tolerance["default"]


def assert_close(case, precision, name, ours):
    error = relative_error(ours, case[name])
    assert error <= limit(case, precision, name), f"{name}: error {error:.2e}"


def assert_many_close(case, precision, prefix, ours):
    """One number a parameter: each within the float64 tolerance, or medians and worst ones as the manifest words it."""
    reference = case.group(prefix)
    assert reference.keys() <= ours.keys(), f"missing {sorted(reference.keys() - ours.keys())[:3]}"
    errors = {name: relative_error(ours[name], value) for name, value in reference.items()}
    rule = limit(case, precision, prefix + "x")
    if isinstance(rule, str):
        median, worst = re.search(r"median .* below ([\d.]+)", rule), re.search(r"worst below ([\d.]+)", rule)
        assert np.median(list(errors.values())) < float(median.group(1))
        assert max(errors.values()) < (float(worst.group(1)) if worst else np.inf)
    else:
        worst = max(errors, key=errors.get)
        assert errors[worst] <= rule, f"{prefix}{worst}: error {errors[worst]:.2e}"


@functools.lru_cache
def task(source_key, batch, candidates, groups, frames, size, optimizer="adam"):
    """The task for a checkpoint's sizes, and its gradient function, compiled once for all cases that share them."""
    config = configs.load("configs/milnce_howto100m.py:smoke")
    config.batch_size, config.batch_groups = batch, groups
    config.clips.num_frames, config.clips.size, config.clips.num_candidates = frames, size, candidates
    config.model.update(width=1.0, blocks=S3D.blocks, **dict(source_key[0]))
    config.text.update(dict(source_key[1]))
    made = make_task(config)
    return made, jax.jit(jax.value_and_grad(made.loss_fn, has_aux=True))


def training(case, precision, groups=1):
    """Task, gradient function, variables and batch of a training case."""
    source = case.weights()
    options = names.model_options(source)
    key = tuple(tuple(sorted(options[section].items())) for section in ("model", "text"))
    video = case["in/video_uint8"]
    made, gradient = task(key, len(video), case["in/text"].shape[1], groups, video.shape[2], video.shape[3])
    variables = names.to_variables(names.state_dict(source), made.abstract_variables())
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, precision), variables)
    params = variables.pop("params")
    text = jnp.asarray(case["in/text"])
    batch = {"video": jnp.asarray(channels_last(video)), "text": text, "flip": jnp.zeros(len(video), bool)}
    return made, gradient, params, variables, batch


def by_reference_name(params, shapes):
    """A tree like the parameters, under the reference's names and layout; what it lacks is filled with zeros."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    return names.to_state_dict({**empty, "params": jax.device_get(params)})


def in_precision(checker):
    """Runs a checker with float64 switched on where it is wanted."""

    @functools.wraps(checker)
    def run(case, precision):
        with jax.enable_x64(precision == "float64"):
            checker(case, precision)

    return run


@functools.lru_cache
def video_tower(space_to_depth, embedding_dim, form):
    model = S3D(embedding_dim=embedding_dim, space_to_depth=space_to_depth, form=form)
    return jax.jit(model.apply)


@in_precision
def check_eval(case, precision):
    source = names.state_dict(case.weights())
    options = names.model_options(source)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, precision), names.to_variables(source))
    video = channels_last(case["in/video_uint8"].astype(np.float32) / 255)
    apply = video_tower(options["model"]["space_to_depth"], options["model"]["embedding_dim"], FACTORISED)
    outputs = apply({name: tree["video"] for name, tree in variables.items() if "video" in tree}, video)
    for name in ("video_embedding", "mixed_5c"):
        assert_close(case, precision, f"out/{name}", outputs[name])
    stages = {name.split("/")[0] for name in case.group("out/stage/")}
    assert stages
    for stage in stages:
        value = channels_first(outputs["stages"][stage])
        assert_close(case, precision, f"out/stage/{stage}/chanmean", value.mean((2, 3, 4)))
        assert_close(case, precision, f"out/stage/{stage}/slice", case.sliced(f"out/stage/{stage}/slice", value))
    words = case.arrays.get("in/text")
    if words is None:
        vocabulary = {word: index for index, word in enumerate(case.manifest["vocabulary"], start=1)}
        length = case.config["max_words"]
        words = np.stack(
            [word_list.encode(text, vocabulary, length, lower=True) for text in case.manifest["sentences"]]
        )
    tower = TextTower(options["text"]["rows"], options["text"]["word_dim"])
    own = {name: tree["text"] for name, tree in variables.items() if "text" in tree}
    tower = tower.clone(hidden_dim=options["model"]["text_hidden_dim"], embedding_dim=options["model"]["embedding_dim"])
    assert_close(case, precision, "out/text_embedding", tower.apply(own, words.reshape(-1, words.shape[-1])))


def check_gradients(case, precision, gradients, shapes):
    reference_names = by_reference_name(gradients, shapes)
    norms = {name: np.linalg.norm(value.astype(np.float64)) for name, value in reference_names.items()}
    assert_many_close(case, precision, "gradnorm/", norms)
    for name in case.group("grad/"):
        assert_close(case, precision, f"grad/{name}", reference_names[name])


@in_precision
def check_train_step(case, precision):
    made, gradient, params, state, batch = training(case, precision)
    (loss, aux), gradients = gradient(params, state, batch, jax.random.key(0))
    assert_close(case, precision, "loss/milnce", loss)
    shapes = made.abstract_variables()
    check_gradients(case, precision, gradients, shapes)
    after = names.to_state_dict(jax.device_get({"params": params, **aux.model_state}))
    assert_many_close(case, precision, "out/state/", after)
    np.testing.assert_array_equal(after[names.TABLE], np.asarray(state["frozen"]["text"]["word_embd"]))
    check_train_outputs(case, precision, params, state, batch)


def check_train_outputs(case, precision, params, state, batch, groups=1):
    """Embeddings and stages in train mode."""
    options = names.model_options(case.weights())["model"]
    model = S3D(
        embedding_dim=options["embedding_dim"],
        space_to_depth=options["space_to_depth"],
        groups=groups,
        form=FACTORISED,
    )
    own = {"params": params["video"], "batch_stats": state["batch_stats"]["video"]}
    apply = jax.jit(lambda variables, video: model.apply(variables, video, True, mutable=["batch_stats"])[0])
    outputs = apply(own, np.asarray(batch["video"]).astype(np.float32) / 255)
    assert_close(case, precision, "out/video_embd", outputs["video_embedding"])
    for stage in {name.split("/")[0] for name in case.group("out/stage/")}:
        value = channels_first(outputs["stages"][stage])
        assert_close(case, precision, f"out/stage/{stage}/chanmean", value.mean((2, 3, 4)))
        assert_close(case, precision, f"out/stage/{stage}/slice", case.sliced(f"out/stage/{stage}/slice", value))


@in_precision
def check_ddp(case, precision):
    """Per-process statistics as groups; the optimiser's gradient; running statistics of group 0, twice."""
    groups = case.config["world_size"]
    made, gradient, params, state, batch = training(case, precision, groups)
    (loss, aux), gradients = gradient(params, state, batch, jax.random.key(0))
    assert_close(case, precision, "loss/milnce", loss)
    check_gradients(case, precision, gradients, made.abstract_variables())
    check_train_outputs(case, precision, params, state, batch, groups)
    # Ours are group 0's statistics, so another rank's appear when its examples come first. Every rank starts its second
    # forward from rank 0's.
    for rank in range(groups):
        turned = jax.tree.map(lambda leaf, rank=rank: jnp.roll(leaf, -rank * len(leaf) // groups, 0), batch)
        for begin, kind in ((state, "state"), (aux.model_state, "state_after_second_forward")):
            (_, after), _ = gradient(params, begin, turned, jax.random.key(0))
            ours = names.to_state_dict(jax.device_get({"params": params, **after.model_state}))
            assert_many_close(case, precision, f"out/{kind}/rank{rank}/", ours)


@in_precision
def check_trajectory(case, precision):
    made, gradient, params, state, batch = training(case, precision)
    wanted = case.config
    config = configs.load("configs/milnce_howto100m.py:smoke")
    config.optimizer.name = wanted["optimizer"]
    config.optimizer.momentum = wanted["momentum"] or 0.0
    config.schedule.learning_rate, config.schedule.warmup_steps = wanted["lr"], wanted["warmup_steps"]
    schedule = make_schedule(config.schedule, wanted["total_steps"], 1)
    optimizer = make_optimizer(config.optimizer, schedule, params)
    opt_state, start = jax.jit(optimizer.init)(params), params
    assert not any("word_embd" in name for name in flatten({"params": params}))
    losses = []

    @jax.jit
    def update(gradients, opt_state, params):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), opt_state

    for step in range(wanted["steps"]):
        (loss, aux), gradients = gradient(params, state, batch, jax.random.key(0))
        params, opt_state = update(gradients, opt_state, params)
        state = aux.model_state
        losses.append(float(loss))
        if step == 0:
            unchanged = jax.tree.map(lambda a, b: np.array_equal(a, b), start, params)
            assert all(jax.tree.leaves(unchanged)), "the first update, at rate 0, changed a parameter"
    assert_close(case, precision, "traj/loss", losses)
    rates = [float(schedule(step)) for step in range(wanted["steps"] + 1)]
    assert_close(case, precision, "traj/lr", rates)
    change = by_reference_name(jax.tree.map(jnp.subtract, params, start), made.abstract_variables())
    norms = {name: np.linalg.norm(value.astype(np.float64)) for name, value in change.items()}
    assert_many_close(case, precision, "out/deltanorm/", norms)
    after = by_reference_name(params, made.abstract_variables())
    for name, value in case.group("out/param/").items():
        rows = after[name][: value.shape[0]]
        error = relative_error(rows, value)
        assert error <= limit(case, precision, f"out/param/{name}"), f"{name}: error {error:.2e}"


def check_space_to_depth(case, precision):
    x = channels_last(case["in/x"])
    folded = space_to_depth(jnp.asarray(x))
    np.testing.assert_array_equal(channels_first(folded), case["out/space_to_depth"])
    import recipe

    tolerance = float(re.search(r"below (\S+)", case.tolerance["stem_*"]).group(1))
    for entry in case.manifest["params"]:
        shape = tuple(entry["shape"])
        kernel = recipe.weight(entry["name"], shape, case.manifest["salt"]).transpose(2, 3, 4, 1, 0)
        for form in (DIRECT, FACTORISED):
            if shape[1] == 3:
                ours = convolve(x, kernel, strides=(2, 2, 2), padding=((1, 1), (3, 3), (3, 3)), form=form)
                reference = case["out/stem_conv_7x7"]
            else:
                ours = convolve(folded, kernel, padding=((1, 1), (2, 2), (2, 2)), form=form)[:, 1:, 1:, 1:]
                reference = case["out/stem_conv_after_drop"]
            assert relative_error(channels_first(ours), reference) <= tolerance


def gradient_error(ours, reference):
    """Relative error; arrays that are zero but for rounding are compared absolutely."""
    if np.abs(reference).max() < 1e-6:
        return np.abs(np.asarray(ours) - reference).max() / 1e-6 * 1e-5
    return relative_error(ours, reference)


def check_milnce_loss(case, precision):
    value_and_grad = jax.value_and_grad(mil_nce, (0, 1))
    for number in range(len(case.config["configs"])):
        video, text = case[f"in/c{number}/video"], case[f"in/c{number}/text"]
        loss, gradients = value_and_grad(video, text)
        tolerance = limit(case, "float32")
        assert relative_error(loss, case[f"loss/c{number}"]) <= tolerance
        for name, gradient in zip(("video", "text"), gradients, strict=True):
            assert gradient_error(gradient, case[f"grad/c{number}/{name}"]) <= tolerance


def check_milnce_gather(case, precision):
    ranks = range(case.config["world_size"])
    video = np.concatenate([case[f"in/rank{rank}/video"] for rank in ranks])
    text = np.concatenate([case[f"in/rank{rank}/text"] for rank in ranks])
    np.testing.assert_array_equal(video, case["out/gathered_video"])
    np.testing.assert_array_equal(text, case["out/gathered_text"])
    loss, gradients = jax.value_and_grad(mil_nce, (0, 1))(video, text)
    assert relative_error(loss, case["loss/milnce"]) <= limit(case, "float32")
    for name, gradient in zip(("video", "text"), gradients, strict=True):
        for rank, part in zip(ranks, np.split(np.asarray(gradient), len(ranks)), strict=True):
            assert gradient_error(part, case[f"grad/rank{rank}/{name}"]) <= limit(case, "float32")


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
    from data_prep.milnce import read_captions

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
    """Through the decoder itself, on lossless videos whose frames show their number, and through the rule alone."""
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
    """Frames [N, 16, 96, 3] whose columns spell their number plus one in bits."""
    frames = np.zeros((count, 16, 96, 3), np.uint8)
    for number in range(count):
        for bit in range(12):
            if (number + 1) >> bit & 1:
                frames[number, :, bit * 8 : bit * 8 + 8] = 255
    return frames


def frame_number(frame):
    """The number that a frame shows; -1 for a black one."""
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
    """Through the evaluator's own scoring."""
    config = configs.load("configs/milnce_quickstart.py")
    evaluator = make_task(config).evaluators["clips"]
    outputs = {"video": case["in/window_video_embeddings"].mean(1), "text": case["in/text_embeddings"]}
    similarity = np.asarray(evaluator.score_fn({}, outputs)["similarity"])
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
    "s3d_eval": check_eval,
    "s3d_eval_odd": check_eval,
    "s3d_eval_plain": check_eval,
    "s3d_released_eval": check_eval,
    "train_step": check_train_step,
    "train_step_s2d": check_train_step,
    "ddp2_train_step": check_ddp,
    "adam_trajectory": check_trajectory,
    "sgd_trajectory": check_trajectory,
    "space_to_depth": check_space_to_depth,
    "milnce_loss": check_milnce_loss,
    "milnce_gather": check_milnce_gather,
    "lr_schedule": check_lr_schedule,
    "caption_candidates": check_caption_candidates,
    "tokenise": check_tokenise,
    "fps_sampling": check_fps_sampling,
    "eval_windows": check_eval_windows,
    "retrieval_metrics": check_retrieval_metrics,
    "retrieval_protocol": check_retrieval_protocol,
    "hmdb_linear": check_hmdb_linear,
}

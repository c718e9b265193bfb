"""Checkers of the golden cases of milnce."""

import functools
import re

import check_milnce_data
import jax
import jax.numpy as jnp
import numpy as np
from cases import relative_error

from vlm_jax import config as configs
from vlm_jax.interop.rules import flatten
from vlm_jax.losses.nce import mil_nce
from vlm_jax.models.s3d import S3D
from vlm_jax.ops import forms
from vlm_jax.ops.convolution import convolve, space_to_depth
from vlm_jax.ops.pixels import to_unit
from vlm_jax.systems.milnce import interop as names
from vlm_jax.systems.milnce.model import TextTower
from vlm_jax.systems.milnce.task import make_model, make_task
from vlm_jax.text import word_list
from vlm_jax.train.optimizer import make_optimizer
from vlm_jax.train.schedule import make_schedule


def channels_last(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def limit(case, precision, name=""):
    """Return the manifest's tolerance for an array."""
    tolerance = case.tolerance[f"{precision}_run"]
    if not isinstance(tolerance, dict):
        return tolerance
    exact = [value for key, value in tolerance.items() if re.fullmatch(key.replace("*", ".*"), name)]
    return exact[0] if exact else tolerance["default"]


def assert_close(case, precision, name, ours):
    error = relative_error(ours, case[name])
    assert error <= limit(case, precision, name), f"{name}: error {error:.2e}"


def assert_many_close(case, precision, prefix, ours):
    """Assert that one number per parameter agrees with the reference.

    The manifest gives either a tolerance for every number, or a text that bounds the median and the worst error.
    """
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
    """Return the task for a checkpoint's sizes, and a function for loss, gradients and outputs in train mode.

    It is compiled once for all cases that share the sizes.
    """
    config = configs.load("configs/milnce_howto100m.py:smoke")
    config.batch_size, config.batch_groups = batch, groups
    config.clips.num_frames, config.clips.size, config.clips.num_candidates = frames, size, candidates
    config.model.update(width=1.0, blocks=S3D.blocks, **dict(source_key[0]))
    config.text.update(dict(source_key[1]))
    made, tower = make_task(config), make_model(config).video

    def everything(params, state, batch, key):
        # With a constant flip, the compiler can share one forward pass between the two calls.
        batch = {**batch, "flip": jnp.zeros(len(batch["video"]), bool)}
        own = {"params": params["video"], "batch_stats": state["batch_stats"]["video"]}
        outputs, _ = tower.apply(own, to_unit(batch["video"]), True, mutable=["batch_stats"])
        return *jax.value_and_grad(made.loss_fn, has_aux=True)(params, state, batch, key), outputs

    return made, jax.jit(everything)


def training(case, precision, groups=1):
    """Return task, gradient function, parameters, model state and batch of a training case."""
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
    """Return a tree like the parameters under the reference's names and layout, with zeros for missing collections."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    return names.to_state_dict({**empty, "params": jax.device_get(params)})


def in_precision(checker):
    """Return a checker that enables float64 where the precision asks for it."""

    @functools.wraps(checker)
    def run(case, precision):
        with jax.enable_x64(precision == "float64"):
            checker(case, precision)

    return run


@functools.lru_cache
def video_tower(space_to_depth, embedding_dim):
    model = S3D(embedding_dim=embedding_dim, space_to_depth=space_to_depth)
    return jax.jit(model.apply)


@in_precision
def check_eval(case, precision):
    source = names.state_dict(case.weights())
    options = names.model_options(source)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, precision), names.to_variables(source))
    video = channels_last(case["in/video_uint8"].astype(np.float32) / 255)
    apply = video_tower(options["model"]["space_to_depth"], options["model"]["embedding_dim"])
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
    (loss, aux), gradients, outputs = gradient(params, state, batch, jax.random.key(0))
    assert_close(case, precision, "loss/milnce", loss)
    shapes = made.abstract_variables()
    check_gradients(case, precision, gradients, shapes)
    after = names.to_state_dict(jax.device_get({"params": params, **aux.model_state}))
    assert_many_close(case, precision, "out/state/", after)
    np.testing.assert_array_equal(after[names.TABLE], np.asarray(state["frozen"]["text"]["word_embd"]))
    check_train_outputs(case, precision, outputs)


def check_train_outputs(case, precision, outputs):
    """Check embeddings and stages in train mode."""
    assert_close(case, precision, "out/video_embd", outputs["video_embedding"])
    for stage in {name.split("/")[0] for name in case.group("out/stage/")}:
        value = channels_first(outputs["stages"][stage])
        assert_close(case, precision, f"out/stage/{stage}/chanmean", value.mean((2, 3, 4)))
        assert_close(case, precision, f"out/stage/{stage}/slice", case.sliced(f"out/stage/{stage}/slice", value))


@in_precision
def check_ddp(case, precision):
    """Check groups against the reference's processes: gradient, and running statistics of group 0 after two passes."""
    groups = case.config["world_size"]
    made, gradient, params, state, batch = training(case, precision, groups)
    (loss, aux), gradients, outputs = gradient(params, state, batch, jax.random.key(0))
    assert_close(case, precision, "loss/milnce", loss)
    check_gradients(case, precision, gradients, made.abstract_variables())
    check_train_outputs(case, precision, outputs)
    # Our running statistics are those of group 0. A rotated batch puts another rank's examples first. Every rank starts
    # its second forward pass from the statistics of rank 0.
    for rank in range(groups):
        turned = jax.tree.map(lambda leaf, rank=rank: jnp.roll(leaf, -rank * len(leaf) // groups, 0), batch)
        for begin, kind in ((state, "state"), (aux.model_state, "state_after_second_forward")):
            (_, after), _, _ = gradient(params, begin, turned, jax.random.key(0))
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
        (loss, aux), gradients, _ = gradient(params, state, batch, jax.random.key(0))
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
        for form in (forms.PLAIN, forms.CPU):
            with forms.use(form):
                if shape[1] == 3:
                    ours = convolve(x, kernel, strides=(2, 2, 2), padding=((1, 1), (3, 3), (3, 3)))
                    reference = case["out/stem_conv_7x7"]
                else:
                    ours = convolve(folded, kernel, padding=((1, 1), (2, 2), (2, 2)))[:, 1:, 1:, 1:]
                    reference = case["out/stem_conv_after_drop"]
            assert relative_error(channels_first(ours), reference) <= tolerance


def gradient_error(ours, reference):
    """Return the relative error, or a scaled absolute error where the reference is zero except for rounding."""
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


CHECKERS = {
    **check_milnce_data.CHECKERS,
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
}

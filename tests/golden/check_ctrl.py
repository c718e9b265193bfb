"""Checkers of the golden cases of ctrl."""

import fnmatch
import functools

import check_ctrl_data
import jax
import jax.numpy as jnp
import numpy as np
import recipe
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.systems.ctrl import interop as names
from vlm_jax.systems.ctrl.loss import alignment_regression
from vlm_jax.systems.ctrl.scoring import make_comparison
from vlm_jax.systems.ctrl.task import make_model, make_task
from vlm_jax.train.optimizer import clip_by_norm, make_optimizer


def assert_close(case, name, ours):
    """Assert that an array agrees with the case, by the tolerance of the longest pattern that fits its name."""
    fitting = [pattern for pattern in case.tolerance if fnmatch.fnmatch(name, pattern)]
    tolerance = case.tolerance[max(fitting, key=len)]
    np.testing.assert_allclose(
        ours, case[name], rtol=tolerance.get("rtol", 0), atol=tolerance.get("atol", 0), err_msg=name
    )


def weights(case):
    """Return the checkpoint of a case. Its tensors are generated once for all cases."""
    salt = case.manifest["salt"]
    return {
        entry["name"]: made(entry["name"], tuple(entry["shape"]), salt) * np.float32(entry.get("scale", 1))
        for entry in case.manifest["params"]
    }


@functools.lru_cache(maxsize=4)
def made(name, shape, salt):
    return recipe.weight(name, shape, salt)


def task(case, batch, factored=True):
    """Return config and task for a case's sizes, and its variables. Cases with the same sizes share one task."""
    source = names.state_dict(weights(case))
    config, made_task = task_of(*key_of(case, source, batch, factored))
    return config, made_task, names.to_variables(source, made_task.abstract_variables())


def key_of(case, source, batch, factored=True):
    options = tuple(names.model_options(source)["model"].items())
    return options, case.config.get("lambda_regression", 0.01), batch, factored


@functools.lru_cache
def task_of(options, regression_weight, batch, factored):
    config = configs.load("configs/ctrl_tacos.py")
    config.model.update(dict(options))
    config.batch_size, config.model.factored, config.loss.regression_weight = batch, factored, regression_weight
    return config, make_task(config)


def norm(array):
    return np.linalg.norm(np.asarray(array, np.float64))


def check_forward_full(case, precision):
    for factored in (False, True):
        config, made_task, variables = task(case, len(case["in/visual"]), factored)
        model = make_model(config)
        out = jax.jit(model.apply)(variables, case["in/visual"], case["in/sentence"])
        assert_close(case, "out/scores", np.moveaxis(np.asarray(out), -1, 0))
    clips = made_task.encoders["clips"](variables, {"visual": case["in/visual"]})
    sentences = made_task.encoders["sentences"](variables, {"sentence": case["in/sentence"]})
    assert_close(case, "out/clip_norm", clips["clip_embedding"])
    assert_close(case, "out/sent_norm", sentences["sentence_embedding"])


def check_score_pairs(case, precision):
    """Check scores of all pairs, computed from embeddings in tiles that do not divide the matrix evenly."""
    config, made_task, variables = task(case, 1)
    clips = made_task.encoders["clips"](variables, {"visual": case["in/visual"]})["clip_embedding"]
    texts = made_task.encoders["sentences"](variables, {"sentence": case["in/sentence"]})["sentence_embedding"]
    run = make_comparison(make_model(config), variables, sentences=2, windows=4)
    assert_close(case, "out/scores", run(np.asarray(clips), np.asarray(texts)))


def check_loss_grad(case, precision):
    config, made_task, variables = task(case, case.config["batch"])
    params = variables["params"]
    batch = {name: case[f"in/{name}"] for name in ("visual", "sentence", "offsets")}
    (loss, aux), gradients = jax.jit(jax.value_and_grad(made_task.loss_fn, has_aux=True))(params, {}, batch, None)
    assert_close(case, "loss/total", loss)
    assert_close(case, "loss/align", aux.metrics["alignment"])
    assert_close(case, "loss/reg", aux.metrics["regression"])
    check_gradients(case, gradients)
    out = make_model(config).apply({"params": params}, batch["visual"], batch["sentence"])
    assert_close(case, "out/scores", np.moveaxis(np.asarray(out), -1, 0))


def check_gradients(case, gradients):
    theirs = names.to_state_dict({"params": jax.device_get(gradients)})
    for name in case.group("gradnorm/"):
        assert_close(case, f"gradnorm/{name}", norm(theirs[name]))
    for name in case.group("grad/"):
        assert_close(case, f"grad/{name}", theirs[name])
    for name in {name.rsplit("/", 1)[0] for name in case.group("grad_probe/")}:
        probed = theirs[name].reshape(-1)[case[f"grad_probe/{name}/index"]]
        assert_close(case, f"grad_probe/{name}/value", probed)


def check_loss_random(case, precision):
    def total(outputs, offsets):
        loss = alignment_regression(outputs, offsets)
        return loss.total, loss

    for size in case.config["batch_sizes"]:
        outputs = np.moveaxis(case[f"in/{size}/scores"], 0, -1)
        step = jax.jit(jax.value_and_grad(total, has_aux=True))
        (_, loss), gradient = step(outputs, case[f"in/{size}/offsets"])
        assert_close(case, f"loss/{size}/total", loss.total)
        assert_close(case, f"loss/{size}/align", loss.alignment)
        assert_close(case, f"loss/{size}/reg", loss.regression)
        gradient = np.moveaxis(np.asarray(gradient), -1, 0)
        assert_close(case, f"grad/{size}/scores", gradient)
        assert not gradient[1:, ~np.eye(size, dtype=bool)].any()


@functools.lru_cache
def update_function(key, options, rate, clip):
    """Return an optimiser and a training step, compiled once for the cases that share it."""
    _, made_task = task_of(*key)
    optimizer = make_optimizer(ConfigDict(dict(options)), lambda step: rate, made_task.abstract_variables()["params"])

    @jax.jit
    def step(params, opt_state, data):
        (loss, aux), gradients = jax.value_and_grad(made_task.loss_fn, has_aux=True)(params, {}, data, None)
        first, size = gradients, jnp.zeros(())
        if clip:
            gradients, size = clip_by_norm(gradients, clip)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        scale = norm_of(gradients["output"]["kernel"]) / norm_of(first["output"]["kernel"])
        seen = {"loss": loss, "reg": aux.metrics["regression"], "norm": size, "scale": scale}
        return jax.tree.map(jnp.add, params, updates), opt_state, seen

    return optimizer, step


def norm_of(array):
    return jnp.linalg.norm(array.reshape(-1))


def run_steps(case):
    """Return the values of each step of a case, and the parameters' total change under the reference's names."""
    wanted, name, salt = case.config, case.manifest["case"], case.manifest["salt"]
    clip = wanted.get("clip_global_norm", wanted.get("clip")) or 0.0
    config, _, variables = task(case, wanted["batch"])
    # The numbers are the case's; where epsilon and bias correction are applied is the config's.
    options = config.optimizer.to_dict() | {"b1": wanted["beta1"], "b2": wanted["beta2"], "epsilon": wanted["epsilon"]}
    options["groups"] = ()
    key = key_of(case, weights(case), wanted["batch"])
    optimizer, step = update_function(key, tuple(options.items()), wanted["lr"], clip)
    start = variables["params"]
    params, opt_state, seen = start, jax.jit(optimizer.init)(start), []
    for number in range(1, wanted["steps"] + 1):
        data = inputs(name, number, wanted["batch"], config.model, salt)
        params, opt_state, found = step(params, opt_state, data)
        seen.append(jax.device_get(found))
    change = jax.tree.map(lambda after, before: np.asarray(after, np.float64) - before, params, start)
    return seen, names.to_state_dict({"params": change})


def inputs(case_name, number, batch, sizes, salt):
    def array(kind, size, low, high):
        return recipe.array(f"{case_name}/{number}/{kind}", (batch, size), salt, low, high)

    return {
        "visual": array("visual", sizes.visual_dim, 0, 1),
        "sentence": array("sentence", sizes.sentence_dim, -0.5, 0.5),
        "offsets": np.round(array("offset", 2, -60, 60)),
    }


def check_change(case, change):
    for name in case.group("deltanorm/"):
        assert_close(case, f"deltanorm/{name}", norm(change[name]))
    for name in {name.rsplit("/", 1)[0] for name in case.group("delta_probe/")}:
        probed = change[name].reshape(-1)[case[f"delta_probe/{name}/index"]]
        assert_close(case, f"delta_probe/{name}/value", probed)


def check_trajectory(case, precision):
    seen, change = run_steps(case)
    assert_close(case, "traj/loss", [step["loss"] for step in seen])
    assert_close(case, "traj/gradnorm_before_clip", [step["norm"] for step in seen])
    assert_close(case, "traj/clip_scale", [step["scale"] for step in seen])
    check_change(case, change)


def check_tf_original(case, precision):
    config, made_task, variables = task(case, case.config["batch"])
    salt = case.manifest["salt"]
    model = make_model(config)
    first = inputs(case.manifest["case"], 1, case.config["batch"], config.model, salt)
    out = np.asarray(jax.jit(model.apply)(variables, first["visual"], first["sentence"]))
    assert_close(case, "out/scores_bb3", out)
    assert_close(case, "out/offset_pred", np.diagonal(out)[1:].T)
    assert_close(case, "out/test_score", out[1, 0])
    gradients = jax.jit(jax.grad(made_task.loss_fn, has_aux=True))(variables["params"], {}, first, None)[0]
    check_gradients(case, gradients)
    seen, change = run_steps(case)
    assert_close(case, "traj/loss", [step["loss"] for step in seen])
    assert_close(case, "traj/reg", [step["reg"] for step in seen])
    check_change(case, change)


CHECKERS = {
    **check_ctrl_data.CHECKERS,
    "forward_full": check_forward_full,
    "score_pairs": check_score_pairs,
    "loss_grad": check_loss_grad,
    "loss_random": check_loss_random,
    "traj_adam": check_trajectory,
    "traj_adam_clip": check_trajectory,
    "traj_adam_init": check_trajectory,
    "tf_original": check_tf_original,
}

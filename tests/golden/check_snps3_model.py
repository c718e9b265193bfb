"""Checkers of the golden cases of snps3 that run the whole model: pre-training, retrieval, questions, trajectories."""

import dataclasses
import re
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
from precision import precise, wide
from snps3_tolerance import check

from vlm_jax.interop.rules import convert
from vlm_jax.losses.nce import grouped_mil_nce
from vlm_jax.ops.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from vlm_jax.systems.snps3 import interop, loss, objectives
from vlm_jax.systems.snps3.config import default_config, visual_network
from vlm_jax.systems.snps3.model import VisualEncoder, grid_mask
from vlm_jax.systems.snps3.task import make_model, make_task
from vlm_jax.text.masking import IGNORED
from vlm_jax.train.optimizer import make_optimizer
from vlm_jax.train.schedule import make_schedule
from vlm_jax.train.state import create_state
from vlm_jax.train.step import make_train_step

TEXTS = {
    "raw": "caption_raw_input_ids",
    "masked": "caption_input_ids",
    "raw_mask": "caption_input_mask",
    "labels": "caption_lm_label_ids",
    "false": "caption_false_input_ids",
    "false_mask": "caption_false_input_mask",
    "words": "vwm_word_idx",
}


def frames(array, precision):
    """Return standardised images `[B, N, 3, H, W]` as the colours in [0, 255] that give them, `[B, N, H, W, 3]`."""
    colours = np.moveaxis(np.asarray(array, np.float64), 2, -1) * np.array(IMAGENET_DEVIATION) + np.array(IMAGENET_MEAN)
    return (colours * 255).astype(precision)


def config_of(case, head, clips, size):
    """Return the config of a case, without dropout."""
    wanted = case.config
    config = default_config()
    config.head, config.batch_groups, config.strict = head, 1, True
    config.frames.clips = clips
    config.model.visual = visual_network("swin", depths=(2, 2, 2, 2), drop_path=0.0)
    config.model.layers, config.model.dropout = wanted["text_layers"], 0.0
    config.text.vocabulary_size = wanted["vocab"]
    config.batch_size, config.text.length = size
    config.model.num_answers = wanted.get("num_labels", 1500)
    moco = wanted["moco"]
    config.momentum.text_queue = config.momentum.clip_queue = moco["K"]
    config.momentum.decay, config.momentum.temperature = moco["M"], moco["T"]
    config.words.ranks = "given"
    config.words.matching = wanted.get("VWM_count_stage", "after")
    config.loss.attentive_masking = wanted.get("attentive_masking", False)
    config.loss.hard_mining, config.loss.reweight = wanted.get("re_sample_method", ""), "re_weight_method" in wanted
    return config


def variables_of(case, precision):
    """Return the case's variables, after checks that all names are used and come back; queues as in the notes."""
    weights = {name: array for name, array in case.weights().items() if not interop.ALIASES.search(name)}
    found = interop.to_variables(weights)
    back = interop.to_state_dict(found)
    dropped = {name for name in back if "cls.predictions.decoder." in name}
    assert back.keys() - dropped == weights.keys()
    for name in weights:
        np.testing.assert_array_equal(back[name], weights[name])
    aliases = case.manifest["aliases"]
    assert {name: aliases.get(name) for name in dropped} == {
        name: back_name for name, back_name in aliases.items() if name in dropped
    }
    if "momentum" in found:
        for kind in ("text", "clip"):
            queue = found["momentum"][f"{kind}_queue"]
            found["momentum"][f"{kind}_queue"] = queue / np.linalg.norm(queue, axis=1, keepdims=True)
            found["momentum"][f"{kind}_pointer"] = np.int32(0)
    return wide(found, precision)


def pretraining_batch(case, precision, prefix="in/"):
    batch = {ours: case[prefix + theirs] for ours, theirs in TEXTS.items()}
    return {"video": frames(case[f"{prefix}image_data"], precision), **batch}


def run(case, head, batch, clips, precision, dtype="float32"):
    """Return loss, reports, new state and gradients by the reference's names; layers compute in `dtype`."""
    ids = batch["raw" if head == "pretraining" else "text"]
    config = config_of(case, head, clips, (len(ids), ids.shape[-1]))
    config.model.dtype = dtype
    task = make_task(config)
    variables = variables_of(case, precision)
    params, state = variables["params"], {name: own for name, own in variables.items() if name != "params"}
    key = jax.random.key(0)
    value_and_grad = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))
    (total, aux), gradients = value_and_grad(params, state, batch, key)
    names = {"params": gradients}
    return total, aux.metrics, aux.model_state, interop.to_state_dict(names)


def check_gradients(case, gradients, every=True):
    """Compare norms of gradients, and those that are stored whole.

    If the case has `every` gradient, what the reference has none for has none in ours.
    """
    tolerance = {name: case.tolerance[f"gradnorm_{name}"] for name in ("rtol", "atol")}
    norms = {name: np.linalg.norm(np.asarray(x, np.float64)) for name, x in gradients.items()}
    stored = case.group("gradnorm/")
    assert stored.keys() <= norms.keys()
    for name in norms if every else stored:
        if "cls.predictions.decoder." not in name:
            np.testing.assert_allclose(norms[name], stored.get(name, 0.0), err_msg=name, **tolerance)
    if whole := {f"grad/{name}": gradients[name] for name in case.group("grad/")}:
        check(case, whole)


def by_their_names(reports):
    return {f"loss/{name}": value for name, value in reports.items() if name.endswith(("loss", "entropy"))}


def check_pretraining(case, precision):
    total, reports, state, gradients = run(
        case, "pretraining", pretraining_batch(case, precision), case.config["n_clips"], precision
    )
    found = by_their_names(reports) | {"loss/total": total}
    metrics = {name: value for name, value in reports.items() if not name.endswith("loss")}
    found |= {f"out/metrics/{name.replace('@', '_at_')}": value for name, value in metrics.items()}
    assert {name for name in case.arrays if name.startswith(("loss/", "out/metrics/"))} == found.keys()
    check(case, found)
    momentum = state["momentum"]
    for ours, theirs in (("text", "txt"), ("clip", "img")):
        head = case[f"out/{theirs}_queue_head"]
        check(case, {f"out/{theirs}_queue_head": momentum[f"{ours}_queue"].T[:, : head.shape[1]]})
    assert int(momentum["clip_pointer"]) == int(case["out/img_queue_ptr"][0])
    check_gradients(case, gradients)


@precise
def check_pretrain_step(case, precision):
    """Compare losses, metrics, gradients and queues; where masks are attentive, the picks are those of the case."""
    if not case.config["attentive_masking"]:
        check_pretraining(case, precision)
        return
    drawn = np.zeros(case["in/caption_input_ids"].shape, bool)
    for row, picks in enumerate(case.manifest["attentive_picks"]):
        drawn[row, picks] = True

    def given(key, importance, unmasked, ids, labels, special, mask_id, groups):
        assert importance.shape == drawn.shape
        return jnp.where(drawn, mask_id, unmasked), jnp.where(drawn, unmasked, IGNORED)

    with patched(objectives, "sometimes_attended", given):
        check_pretraining(case, precision)


def patched(module, name, function):
    """Return a context in which a module's function is another one."""
    return unittest.mock.patch.object(module, name, function)


@precise
def check_pretrain_traj(case, precision):
    """Run training steps of the loop; compare losses, rates, gradient norms, and norms of parameters at the end."""
    wanted = case.config
    count, length = case["in/0/caption_input_ids"].shape
    config = config_of(case, "pretraining", wanted["n_clips"], (count, length))
    config.optimizer.weight_decay, config.optimizer.clip_norm = wanted["weight_decay"], wanted["clip"]
    config.optimizer.b1, config.optimizer.b2 = wanted["betas"]
    config.optimizer.epsilon = wanted["eps"]
    config.schedule.learning_rate, config.schedule.warmup_steps = wanted["lr"], wanted["warmup_iterations"]
    config.schedule.warmup_start, config.schedule.boundary_steps = wanted["warmup_factor"], tuple(wanted["lr_steps"])
    config.schedule.decay_factor = wanted["lr_ratio"]
    # The case has more masked words than the masking of significant words chooses.
    config.words.masking = False
    task, variables = make_task(config), variables_of(case, precision)
    assert no_decay_names(config, variables["params"]) == {
        name for name in case.manifest["no_decay"] if "decoder.bias" not in name
    }
    schedule = make_schedule(config.schedule, 5, 5)
    optimizer = make_optimizer(config.optimizer, schedule, variables["params"])
    state = create_state(variables, optimizer, jax.random.key(0), False)
    step = jax.jit(make_train_step(task, optimizer, schedule, clip_norm=config.optimizer.clip_norm))
    found = {name: [] for name in case.group("traj/")}
    names = {"loss": "loss", "lr": "learning_rate", "grad_norm_before_clip": "gradient_norm"}
    for number in range(len(case["traj/loss"])):
        state, metrics = step(state, pretraining_batch(case, precision, f"in/{number}/"))
        for name in found:
            found[name].append(metrics[names.get(name, name)])
    compare_trajectory(case, {name: np.array(values) for name, values in found.items()})
    after = interop.to_state_dict({"params": state.params, **state.model_state})
    stored = case.group("out/param_norm_after/")
    check(
        case,
        {f"out/param_norm_after/{name}": np.linalg.norm(np.asarray(after[name], np.float64)) for name in stored},
    )


def compare_trajectory(case, found):
    """Compare the values of all steps; the first losses are compared more closely, and rates by the general rule."""
    tolerance = case.tolerance
    for name, values in found.items():
        rtol = {"lr": 1e-4, "grad_norm_before_clip": tolerance["grad_norm_rtol"]}.get(name, tolerance["loss_rtol"])
        np.testing.assert_allclose(values, case[f"traj/{name}"], rtol=rtol, err_msg=name)
    first = {"rtol": tolerance["first_step_loss_rtol"]}
    np.testing.assert_allclose(found["loss"][0], case["traj/loss"][0], **first)


def no_decay_names(config, params):
    """Return the reference's names of the parameters without weight decay."""
    flags = jax.tree_util.tree_map_with_path(
        lambda path, x: np.full(np.shape(x), decay_of(config, jax.tree_util.keystr(path, simple=True, separator="/"))),
        params,
    )
    names = interop.to_state_dict({"params": flags})
    return {name for name, flag in names.items() if not flag.any() and "decoder" not in name}


def decay_of(config, name):
    group = next((group for group in config.optimizer.groups if re.search(group[0], name)), None)
    return config.optimizer.weight_decay if group is None else group[2]


@precise
def check_retrieval(case, precision):
    """Compare losses and gradients of training, and embeddings, scores and losses of evaluation."""
    batch, clips = retrieval_batch(case, precision), case.config["n_clips"]
    _, reports, _, gradients = run(case, "retrieval", batch, clips, precision)
    check(case, {f"loss/train_{name}": value for name, value in reports.items() if name.endswith("loss")})
    check_gradients(case, gradients)
    text, found, level1 = embeddings(case, batch, precision)
    level2 = matched(case, batch, found["tokens"], np.tile(np.arange(len(text)), (len(text), 1)), precision)
    check(case, {"out/text_embed": text, "out/clip_feature": found["clips"].reshape(-1, text.shape[-1])})
    texts, videos = case["out/block_l1"].shape
    scores = {"l1_simi": loss.over_clips(level1), "l2_simi": level2}
    check(case, {f"out/{name}": value for name, value in scores.items()})
    check(case, {f"out/block_{name[:2]}": value[:texts, :videos] for name, value in scores.items()})
    check(case, {"loss/eval_level1": loss.in_batch(level1), "loss/eval_level2": grouped_mil_nce(level2)})


@precise
def check_retrieval_hard_mining(case, precision):
    """Compare losses and gradients with the case's choice of videos, and the rule that chooses them."""
    batch, rows = retrieval_batch(case, precision), np.array(case.manifest["topk_video_rows"])
    # The case lists the videos before the own one is written to place i of row i.
    own = np.arange(len(rows))
    best, rows[own, own] = np.sort(rows, 1), own
    with patched(loss, "hard_videos", lambda scores, own, method: jnp.asarray(rows)):
        _, reports, _, gradients = run(case, "retrieval", batch, case.config["n_clips"], precision)
    check(case, by_their_names(reports))
    check_gradients(case, gradients, every=False)
    _, found, level1 = embeddings(case, batch, precision)
    scores = loss.over_clips(level1)
    check(case, {"out/l1_simi": scores, "out/l2_simi": matched(case, batch, found["tokens"], rows, precision)})
    chosen = np.asarray(loss.hard_videos(scores, jnp.asarray(own), case.config["re_sample_method"]))
    np.testing.assert_array_equal(np.diagonal(chosen), own)
    np.testing.assert_array_equal(best, np.tile(own, (len(rows), 1)))


def embeddings(case, batch, precision):
    """Return text embeddings, outputs of the video encoder, and the level-1 scores of all texts and clips."""
    encoders, variables = encoders_of(case, "retrieval", batch, precision)
    text, found = encoders["text"](variables, batch)["text"], encoders["video"](variables, batch)
    return text, found, loss.clip_scores(text, found["clips"])


def matched(case, batch, tokens, videos, precision):
    """Return the level-2 scores of every text and the videos of its row."""
    encoders, variables = encoders_of(case, "retrieval", batch, precision)
    count = videos.shape[1]
    pairs = {name: np.repeat(batch[name], count, 0) for name in ("text", "text_mask")}
    return encoders["match"](variables, pairs | {"tokens": tokens[videos.reshape(-1)]})["scores"].reshape(videos.shape)


def encoders_of(case, head, batch, precision):
    config = config_of(case, head, case.config["n_clips"], (len(batch["text"]), batch["text"].shape[-1]))
    return {name: jax.jit(encode) for name, encode in make_task(config).encoders.items()}, variables_of(case, precision)


def retrieval_batch(case, precision):
    names = {"text": "caption_input_ids", "text_mask": "caption_input_mask"}
    found = {ours: case[f"in/{theirs}"] for ours, theirs in names.items()}
    return {"video": frames(case["in/image_data"], precision), **found}


@precise
def check_video_qa(case, precision):
    batch = retrieval_batch(case, precision) | {"labels": case["in/targets"][:, None]}
    total, _, _, gradients = run(case, "question_answering", batch, case.config["n_clips"], precision)
    check(case, {"loss/cross_entropy": total})
    check_gradients(case, gradients)
    encoders, variables = encoders_of(case, "question_answering", batch, precision)
    batch |= {"tokens": encoders["video"](variables, batch)["tokens"]}
    check(case, {"out/logits": encoders["answer"](variables, batch)["scores"]})
    kernel, bias = (variables["params"]["classifier"][name] for name in ("kernel", "bias"))
    pooled = np.linalg.lstsq(kernel.T, np.asarray(encoders["answer"](variables, batch)["scores"] - bias).T)[0].T
    check(case, {"out/pooled": pooled.astype(precision)})


@precise
def check_multi_choice_qa(case, precision):
    batch = {
        "video": frames(case["in/image_data"], precision),
        "text": case["in/option_input_ids"],
        "text_mask": case["in/option_input_mask"],
        "option_mask": np.ones(case["in/option_input_ids"].shape[:2], bool),
        "label": case["in/targets"],
    }
    total, _, _, gradients = run(case, "multiple_choice", batch, case.config["n_clips"], precision)
    check(case, {"loss/cross_entropy": total})
    check_gradients(case, gradients)
    encoders, variables = encoders_of(case, "multiple_choice", batch, precision)
    batch |= {"tokens": encoders["video"](variables, batch)["tokens"]}
    check(case, {"out/logits": encoders["choose"](variables, batch)["scores"]})


@precise
def check_clip_pooling(case, precision):
    """Compare the mean over frames and cells, and the clips' embeddings, of a given grid."""
    grid = jnp.asarray(np.moveaxis(case["in/grid_feature"], 2, -1), precision)
    real = ~case["in/grid_mask_true_is_pad"]
    clips = case.config["n_clips"]

    def pooled(module):
        return module.pool(grid, real[..., None], clips)

    encoder = VisualEncoder(None, grid.shape[-1])
    rows = [row for layer in (0, 2) for row in interop.linear(f"img_encoder.img_fc.{layer}", f"img_fc_{layer}")]
    variables = convert(case.weights(), interop.below("", rows, ""))
    found = encoder.apply(wide(variables, precision), method=pooled)
    check(case, {"out/clip_tokens": found.tokens})
    check(case, {"out/clip_feature": found.embeddings.reshape(-1, grid.shape[-1])})


@precise
def check_pvt_masked_clips(case, precision):
    """Compare the clips of pictures of four sizes, each padded to the largest."""
    pictures = [case[f"in/image_{number}"] for number in range(4)]
    sizes = np.array([picture.shape[1:] for picture in pictures], np.int32)
    canvas = np.zeros((4, 1, 3, *sizes.max(0)), np.float32)
    for number, (height, width) in enumerate(sizes):
        canvas[number, 0, :, :height, :width] = pictures[number]
    video = frames(canvas, precision)
    wanted = default_config()
    names = [entry["name"].split(".")[2:4] for entry in case.manifest["params"] if ".block" in entry["name"]]
    depths = [1 + max(int(number) for block, number in names if block == f"block{stage}") for stage in range(1, 5)]
    wanted.model.visual, wanted.batch_groups = visual_network("pvt", depths=tuple(depths)), 1
    wanted.strict = True
    encoder = make_model(wanted).visual
    rules = interop.below("img_encoder.", interop.VISUAL, "")
    rules += interop.below("img_encoder.model.", interop.PVT, "network")
    variables = convert(case.weights(), [strip_visual(rule) for rule in rules])
    found = encoder.apply(wide(variables, precision), video, 1, sizes)
    grid = case["out/grid_mask_true_is_pad"]
    masks = grid_mask(jnp.asarray(sizes), canvas.shape[-2:], grid.shape[-2:], strict=True)
    check(case, {"out/grid_mask_true_is_pad": ~np.asarray(masks).reshape(grid.shape)})
    check(case, {"out/clip_tokens": found.tokens.reshape(case["out/clip_tokens"].shape)})
    check(case, {"out/clip_feature": found.embeddings[:, 0]})


def strip_visual(rule):
    """Return a rule whose path is that of the visual encoder alone."""
    return rule if rule.target is None else dataclasses.replace(rule, target=rule.target.replace("/visual/", "/"))


CHECKERS = {
    "pretrain_step": check_pretrain_step,
    "pretrain_traj": check_pretrain_traj,
    "retrieval": check_retrieval,
    "retrieval_hard_mining": check_retrieval_hard_mining,
    "video_qa": check_video_qa,
    "multi_choice_qa": check_multi_choice_qa,
    "clip_pooling": check_clip_pooling,
    "pvt_masked_clips": check_pvt_masked_clips,
}

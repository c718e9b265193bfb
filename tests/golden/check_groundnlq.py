"""Checkers of the golden cases of groundnlq: training, parameters, and the way from features to recall."""

import functools
import types

import check_groundnlq_data
import check_groundnlq_model
import check_groundnlq_ops
import jax
import jax.numpy as jnp
import numpy as np
from check_groundnlq_model import abstract, batch_of, build, forward, padded, variables_of
from check_groundnlq_ops import assert_close, decoding, schedule_of, without_padding

from vlm_jax.config import base_config
from vlm_jax.metrics.moments import ego4d_pairs, recall_table
from vlm_jax.systems.groundnlq import interop as names
from vlm_jax.systems.groundnlq.decoding import decode
from vlm_jax.systems.groundnlq.loss import grounding_loss
from vlm_jax.systems.groundnlq.model import GroundNLQ
from vlm_jax.systems.groundnlq.point_labels import assign, points
from vlm_jax.task import Aux
from vlm_jax.train.optimizer import make_optimizer
from vlm_jax.train.state import create_state
from vlm_jax.train.step import make_train_step

# [[regex, learning-rate factor, weight decay], ...], as configs state them: all kernels decay, and nothing else.
NO_DECAY = [[r"(bias|scale|level_scale_\d+)$", 1.0, 0.0]]
# Beyond rounding, attention does not feel what is added to all keys.
ILL_CONDITIONED = 1e-5


def slower_backbone(factor, decay):
    """Return parameter groups in which all parts but the heads learn at a fraction of the rate."""
    return [
        [r"^level_scale_|^(class|offset)_head/.*(bias|scale)$", 1.0, 0.0],
        [r"^(class|offset)_head/", 1.0, decay],
        [r"(bias|scale)$", factor, 0.0],
        ["", factor, decay],
    ]


def labels_of(case, segments):
    """Return targets `[B, P, ...]` for the segments of every example."""
    wanted = case.config["model"]
    table = points(wanted["max_seq_len"], wanted["regression_range"])
    radius = case.config["train_cfg"]["center_sample_radius"]
    targets = [assign(table, item, classes=wanted["num_classes"], radius=radius) for item in segments]
    return [np.stack(parts) for parts in zip(*targets, strict=True)]


def loss_of(model, train, variables, batch, targets, normaliser):
    """Return the case's loss. Train mode without dropout equals evaluation mode."""
    levels = model.apply(variables, **batch)
    options = {key: train[key] for key in ("label_smoothing", "loss_weight")}
    loss, metrics, after = grounding_loss(*levels, *targets, normaliser, **options)
    return loss, (metrics, after)


def check_train(case, precision):
    wanted, train = case.config["model"], case.config["train_cfg"]
    model = build(wanted)
    variables = variables_of(case, model)
    batch = batch_of(case)
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss_of, model, train), has_aux=True))
    segments = case.manifest["segments_grid_units"]
    targets = labels_of(case, segments)
    for number in range(len(case.group("out/cls_target_"))):
        exact = case.tolerance["out"]
        assert_close(targets[0][number], case[f"out/cls_target_{number}"], exact, "classes")
        assert_close(targets[1][number], case[f"out/reg_target_{number}"], exact, "offsets")
    parts = ["", *sorted({name.split("/")[0] + "/" for name in case.group("loss/") if "/" in name})]
    for part in parts:
        if part == "no_positive/":
            beyond = [[[wanted["max_seq_len"] + 5, wanted["max_seq_len"] + 9]]] * len(segments)
            targets = labels_of(case, beyond)
            assert not targets[0].any()
        else:
            targets = labels_of(case, segments)
        before = case[f"loss/{part}normalizer_before"].astype(np.float32).reshape(1)
        (loss, (metrics, after)), gradients = gradient(variables, batch, targets, before)
        allowed = case.tolerance["loss"]
        assert_close(loss, case[f"loss/{part}final_loss"], allowed, part)
        assert_close(metrics["class_loss"], case[f"loss/{part}cls_loss"], allowed, part)
        assert_close(metrics["offset_loss"], case[f"loss/{part}reg_loss"], allowed, part)
        assert_close(after[0], case[f"loss/{part}normalizer_after"], allowed, part)
        check_gradients(case, part, names.to_state_dict(gradients))


def check_gradients(case, part, gradients):
    loose = set(case.manifest["ill_conditioned"])
    reference = {
        name: value for name, value in case.group(f"gradnorm/{part}").items() if name in gradients or "/" not in name
    }
    assert reference.keys() == gradients.keys() | {"TOTAL"}
    norms = {name: np.linalg.norm(value.astype(np.float64)) for name, value in gradients.items()}
    norms["TOTAL"] = np.linalg.norm(list(norms.values()))
    for name, value in reference.items():
        if name in loose:
            assert norms[name] < ILL_CONDITIONED, f"{part}{name}: {norms[name]:.1e}"
        else:
            assert_close(norms[name], value, case.tolerance["gradnorm"], f"{part}{name}")
    for name, value in case.group(f"grad/{part}").items():
        if name in gradients:
            assert_close(gradients[name], value, case.tolerance["grad"], f"{part}{name}")


def check_trajectory(case, precision):
    """Check six updates by the library's own step."""
    model = build(case.config["model"])
    variables = variables_of(case, model)
    wanted, train = case.manifest["optimizer"], case.config["train_cfg"]
    schedule = schedule_of(wanted, case.manifest["iters_per_epoch"])

    @jax.jit  # Both runs share this; the rest of a step compiles quickly.
    def loss_fn(params, state, batch, key):
        inputs, targets = batch
        loss, (metrics, after) = loss_of(model, train, {"params": params}, inputs, targets, state["loss"]["normaliser"])
        return loss, Aux({**metrics, "normalizer": after[0]}, {"loss": {"normaliser": after}})

    decay = wanted["weight_decay"]
    factors = {"plain": [1, 1], "two_rates": [1, 1, *[case.manifest["two_rates_changes"]["backbone_lr_weight"]] * 2]}
    groups = {"plain": NO_DECAY, "two_rates": slower_backbone(factors["two_rates"][-1], decay)}
    for kind in ("plain", "two_rates"):
        config = base_config().optimizer
        config.name, config.weight_decay, config.groups = "adamw", decay, groups[kind]
        optimizer = make_optimizer(config, schedule, variables["params"])
        clip = case.manifest["clip"]
        step = make_train_step(
            types.SimpleNamespace(loss_fn=loss_fn), optimizer, schedule, clip_norm=clip, ema_decay=0.999
        )
        normaliser = jnp.full(1, train["init_loss_norm"], jnp.float32)
        start = jax.tree.map(jnp.asarray, variables) | {"loss": {"normaliser": normaliser}}
        state = create_state(start, optimizer, jax.random.key(0), ema=True)
        taken = []
        for number in range(case.manifest["steps"]):
            segments = [np.array(item) + number for item in case.manifest["segments_grid_units"]]
            batch = batch_of(case, f"in/step{number}/"), labels_of(case, segments)
            state, metrics = step(state, batch)
            taken.append(metrics)
        assert taken[0]["learning_rate"] == 0
        ours = {"cls_loss": "class_loss", "reg_loss": "offset_loss", "grad_norm": "gradient_norm"}
        for name in ("loss", "cls_loss", "reg_loss", "normalizer", "grad_norm"):
            values = [float(metrics[ours.get(name, name)]) for metrics in taken]
            assert_close(values, case[f"traj/{kind}/{name}"], case.tolerance["traj"], f"{kind} {name}")
        rates = np.outer([float(metrics["learning_rate"]) for metrics in taken], factors[kind])
        assert_close(rates, case[f"traj/{kind}/lr"], case.tolerance["traj"], f"{kind} rates")
        for tree, prefix in ((state.params, ""), (state.ema_params, "ema_")):
            after = names.to_state_dict({"params": jax.device_get(tree)})
            norms = case.group(f"out/{kind}/{prefix}norm/")
            for name in norms.keys() - set(case.manifest[f"ill_conditioned_{kind}"]):
                norm = np.linalg.norm(after[name].astype(np.float64))
                assert_close(norm, norms[name], case.tolerance["out"], f"{kind} {prefix}norm {name}")
            for name, value in case.group(f"out/{kind}/{prefix.rstrip('_') or 'param'}/").items():
                assert_close(after[name], value, case.tolerance["out"], f"{kind} {prefix}{name}")


def check_parameters(case, precision):
    for number, (system, cross) in enumerate((("groundnlq", 0), ("groundnlq_star", 6))):
        wanted = case.manifest[system]
        sizes = {"max_seq_len": 2560, "input_vid_dim": 2304, "input_txt_dim": 512}
        params = abstract(GroundNLQ(cross_blocks=cross, plain_blocks=6 - cross), sizes)["params"]
        leaves, tree = jax.tree.flatten(params)
        numbered = [np.broadcast_to(np.int32(place), leaf.shape) for place, leaf in enumerate(leaves)]
        arrays = names.to_state_dict({"params": jax.tree.unflatten(tree, numbered)})
        by_number = {int(array.flat[0]): name for name, array in arrays.items()}
        ours = {name: list(array.shape) for name, array in arrays.items()}
        assert ours == dict(wanted["all"])
        assert len(ours) == wanted["tensors"]
        assert sum(map(np.prod, ours.values())) == wanted["parameters"] == case["out/count"][number]
        fresh = {name for name in ours if "head" in name}
        assert fresh == set(wanted["reinitialised_when_finetuning"])

        # An update by decay alone at rate 1 lowers a weight of 1 by its factor times its decay.
        params = jax.tree.map(lambda leaf: jnp.ones(()), params)
        groups = {}
        for kind, own in (("plain", NO_DECAY), ("two_rates", slower_backbone(0.1, 0.05))):
            config = base_config().optimizer
            config.name, config.weight_decay, config.groups = "adamw", 0.05, own
            optimizer = make_optimizer(config, lambda step: 1.0, params)
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, _ = optimizer.update(zeros, optimizer.init(params), params)
            for place, update in enumerate(jax.tree.leaves(updates)):
                groups.setdefault((kind, round(-float(update), 6)), set()).add(by_number[place])
        assert groups["plain", 0.05] == set(wanted["decay"])
        assert groups["plain", 0.0] == set(wanted["no_decay"])
        assert groups["two_rates", 0.05] == set(wanted["head_decay"])
        assert groups["two_rates", 0.005] == set(wanted["decay"]) - set(wanted["head_decay"])
        assert len(groups["two_rates", 0.005]) == wanted["backbone_decay_count"]
        assert groups["two_rates", 0.0] == set(wanted["no_decay"])
        assert len(set(wanted["no_decay"]) - fresh) == wanted["backbone_no_decay_count"]


def check_end_to_end(case, precision):
    """Check the way from features in memory to the result file and its recall."""
    model = build(case.config["model"])
    variables = variables_of(case, model)
    records, results = case.manifest["records_in_order"], []
    grid = {"feat_stride": 16.043, "feat_num_frames": 16.043, "fps": 30}
    options = decoding(case.config["test_cfg"], grid)
    for rows in case.manifest["batches"]:
        batch = [records[row] for row in rows]
        queries = [case[f"in/text/{record['query_id']}"].T for record in batch]
        video, mask = padded([case[f"in/video/{record['video_id']}"].T for record in batch], model.max_length)
        text, text_mask = padded(queries, max(query.shape[1] for query in queries))
        inputs = {"video": video, "mask": mask, "text": text, "text_mask": text_mask}
        durations = np.array([record["duration"] for record in batch], np.float32)
        found = jax.jit(decode, static_argnums=4)(*forward(model)(variables, inputs), durations, options)
        for number, record in enumerate(batch):
            moments = without_padding(jax.tree.map(lambda part, number=number: part[number], found))
            annotation, index = record["query_id"].split("_")
            times = np.concatenate([moments.segments, moments.scores[:, None]], 1)
            results.append(
                {
                    "query_idx": int(index),
                    "annotation_uid": annotation,
                    "predicted_times": times.tolist(),
                    "clip_uid": record["video_id"],
                }
            )
    for ours, reference in zip(results, case.manifest["result_file"]["results"], strict=True):
        assert {**ours, "predicted_times": 0} == {**reference, "predicted_times": 0}
    ours = [entry["predicted_times"] for entry in results]
    assert_close(ours, case["out/predicted_times"], case.tolerance["out"])
    recall = recall_table(*ego4d_pairs(results, case.manifest["ground_truth"]), (0.3, 0.5), (1, 5, 10))
    assert_close(100 * recall, case["out/recall_percent"], case.tolerance["out"])


CHECKERS = {
    **check_groundnlq_data.CHECKERS,
    **check_groundnlq_model.CHECKERS,
    **check_groundnlq_ops.CHECKERS,
    "train": check_train,
    "trajectory": check_trajectory,
    "parameters": check_parameters,
    "end_to_end": check_end_to_end,
}

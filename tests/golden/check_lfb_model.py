"""Checkers of the golden cases of lfb that run networks: backbone, box features, operators, detectors, training."""

import types

import jax
import jax.numpy as jnp
import numpy as np
from lfb_tolerance import check
from precision import precise, wide

from vlm_jax.models.resnet3d import SlowOnly
from vlm_jax.ops.roi_align import roi_align
from vlm_jax.systems.lfb import interop
from vlm_jax.systems.lfb.bank import Bank
from vlm_jax.systems.lfb.bank_operators import NonLocalBank, pool_bank
from vlm_jax.systems.lfb.config import default_config
from vlm_jax.systems.lfb.loss import action_loss, scores
from vlm_jax.systems.lfb.model import RoiExtractor, adaptive_average, standardise
from vlm_jax.systems.lfb.targets import Matching, assign, positives, sample
from vlm_jax.systems.lfb.task import make_model
from vlm_jax.task import Aux
from vlm_jax.train.optimizer import make_optimizer
from vlm_jax.train.schedule import make_schedule
from vlm_jax.train.state import create_state
from vlm_jax.train.step import make_train_step

FBO = "roi_head.shared_head.fbo."


def channels_last(array):
    return np.moveaxis(array, 1, -1)


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def variables_of(case, precision):
    return wide(interop.to_variables(case.weights()), precision)


def detector(kind, **model):
    """Return the detector of a case, without dropout."""
    config = default_config()
    config.batch_size, config.batch_groups = 2, 1
    config.model.operator = {"nl": "non_local", "base": "none"}.get(kind, kind)
    config.model.dropout, config.model.bank_dropout = 0.0, 0.0
    config.model.update(model)
    return make_model(config)


def bank_of(case):
    """Return the case's bank, None for a case without one."""
    content = case.group("in/bank/")
    if not content:
        return None
    videos, seconds = zip(*(key.split("/") for key in content), strict=True)
    rows = list(content.values())
    return Bank.from_arrays(videos, list(map(int, seconds)), list(map(len, rows)), np.concatenate(rows), {})


def windows_of(case, keys, count):
    """Return bank rows and slots of a batch of clips for `count` boxes each, or nothing for a case without a bank."""
    bank = bank_of(case)
    if bank is None:
        return {}
    found = [bank.sample(video, int(second), count, None) for video, second in (key.split(",") for key in keys)]
    length = max(len(rows) for rows, _ in found)
    rows = [np.pad(rows, ((0, length - len(rows)), (0, 0))) for rows, _ in found]
    return {"rows": np.stack(rows), "slots": np.stack([slots for _, slots in found])}


@precise
def check_slowonly_forward(case, precision):
    video = channels_last(case["in/imgs"])
    variables = {name: tree["backbone"] for name, tree in variables_of(case, precision).items()}
    standard = standardise(video)
    maps, _ = SlowOnly().apply(variables, standard)
    found = {"out/normalized_c": channels_first(standard)[:, :, 0], "out/layer4": channels_first(maps["layer4"])}
    for name in ("conv1", "pool1", "layer1", "layer2"):
        found[f"out/{name}_c8"] = channels_first(maps[name])[:, ::8]
    found["out/layer3_c4"] = channels_first(maps["layer3"])[:, ::4]
    check(case, found, precision)


@precise
def check_roi_align(case, precision):
    rois, clips = case["in/rois"], len(case["in/feat"])
    features = jnp.asarray(channels_last(case["in/feat"]))[:, None]
    boxes, own = jnp.asarray(np.broadcast_to(rois[:, 1:], (clips, *rois[:, 1:].shape))), rois[:, 0].astype(int)
    longest = (np.abs(rois[:, 3:] - rois[:, 1:3]).max() + 1) * case.config["spatial_scale"]
    found = {}
    for form in ("aligned", "legacy"):
        for size, samples in ((8, 0), (7, 2)):
            name = f"{form}_o{size}_s{samples}"

            def pooled(features, size=size, samples=samples, form=form):
                options = {"output_size": size, "samples": samples, "aligned": form == "aligned"}
                bound = int(np.ceil(longest / size)) + 1
                scale = case.config["spatial_scale"]
                cells = roi_align(features, boxes, scale=scale, max_samples=bound, **options)
                return cells[own, np.arange(len(own)), 0]

            out, back = jax.vjp(pooled, features)
            found[f"out/{name}"] = channels_first(out)
            (gradient,) = back(jnp.asarray(channels_last(case[f"in/cotangent_o{size}"])))
            found[f"grad/{name}"] = channels_first(gradient[:, 0])
    check(case, found, precision)


@precise
def check_roi_extractor(case, precision):
    rois, maps = case["in/rois"], jnp.asarray(channels_last(case["in/feat"]))
    boxes, own = jnp.broadcast_to(rois[:, 1:], (len(maps), *rois[:, 1:].shape)), rois[:, 0].astype(int)
    found = {"out/global_map": channels_first(maps.mean(1, keepdims=True))}
    for name, options in (
        ("avg", {}),
        ("max", {"time_pool": "max"}),
        ("none", {"time_pool": "none"}),
        ("avg_global", {"with_global": True}),
    ):
        cells = RoiExtractor(**options).apply({}, maps, boxes)
        found[f"out/{name}"] = channels_first(cells[own, np.arange(len(own))])
    check(case, found, precision)
    # The pooled map of the clip is what the last channels hold.
    whole = np.asarray(adaptive_average(maps.mean(1, keepdims=True), 8))[own]
    np.testing.assert_allclose(found["out/avg_global"][:, 8:], channels_first(whole), rtol=0, atol=1e-6)


def slots_of(rows):
    """Return every row of `[N, L, C]` in its own slot, for one box per clip; rows of zeros as empty slots."""
    empty = ~rows.any(-1)
    return np.where(empty, -1, np.arange(rows.shape[1]))[:, None]


@precise
def check_fbo_nl(case, precision):
    rows = case["in/lt_feat"] if "in/lt_feat" in case.arrays else np.load(case.path.parent / "fbo_nl.npz")["in/lt_feat"]
    rows, wanted = rows.astype(np.float32), case.config
    model = NonLocalBank(
        wanted["latent_channels"], wanted["num_non_local_layers"], pre_activate=wanted["pre_activate"], dropout=0.0
    )
    params = variables_of(case, precision)["params"]["fbo"]

    def pooled(params, short):
        return model.apply({"params": params}, short[:, None], rows, slots_of(rows), train=True)[:, 0]

    out, back = jax.vjp(pooled, params, jnp.asarray(case["in/st_feat"]))
    gradients, short = back(jnp.asarray(case["in/cotangent"]))
    found = {"out/fbo_feat": out, "grad/st_feat": short}
    for name, gradient in interop.to_state_dict({"params": {"fbo": gradients}}).items():
        found[f"gradnorm/{name}"] = np.linalg.norm(gradient)
    assert set(found) == {name for name in case.arrays if not name.startswith("in/")}
    check(case, found, precision)


@precise
def check_fbo_avg_max(case, precision):
    rows = next(array for name, array in case.arrays.items() if name.startswith("in/lt"))
    rows = rows.astype(np.float32)
    found = {}
    for name in (name for name in case.arrays if name.startswith("out/")):
        operator = "avg" if "avg" in name else "max"
        found[name] = np.asarray(pool_bank(rows, slots_of(rows), operator))[:, 0].reshape(case[name].shape)
    check(case, found, precision)


@precise
def check_detector_eval(case, precision):
    wanted, kind = case.config, case.config["kind"]
    boxes = case["in/proposals"]
    model, variables = detector(kind), variables_of(case, precision)
    video, window = channels_last(case["in/imgs"]), windows_of(case, [wanted["img_key"]], len(boxes))
    outputs = model.apply(variables, video, boxes[None], **window)
    found = {
        "out/roi_feat_c16": channels_first(outputs["cells"][0][:, 0])[:, ::16],
        "out/roi_pooled": outputs["features"][0],
        "out/cls_score": outputs["logits"][0],
        "out/scores": scores(outputs["logits"])[0],
        "out/bboxes": boxes / np.tile(wanted["img_shape"][::-1], 2).astype(np.float32),
    }
    if "out/head_feat" in case.arrays:
        found["out/head_feat"] = outputs["joined"][0].reshape(len(boxes), -1)
    assert set(found) == {name for name in case.arrays if name.startswith("out/")}
    check(case, found, precision)


def positives_of(case, number):
    """Return boxes and labels of one clip, positives and then negatives, and the sampler's outputs by the case's names.

    Our batches leave negatives out; here they show that the loss does not feel them.
    """
    boxes, labels = case[f"in/gt_bboxes/{number}"], case[f"in/gt_labels/{number}"]
    proposals, matching = case[f"in/proposals/{number}"], Matching()
    assigned, _ = assign(boxes, proposals, matching)
    own, actions = positives(boxes, labels, proposals, matching, np.random.default_rng(0))
    sampler = {
        f"out/pos_inds/{number}": sample(assigned, len(boxes), matching.max_boxes, np.random.permutation),
        f"out/neg_inds/{number}": len(boxes) + np.flatnonzero(assigned == 0),
        f"out/pos_labels/{number}": actions,
    }
    rest = np.flatnonzero(assigned == 0)
    own = np.concatenate([own, proposals[rest]])
    return own, np.pad(actions, ((0, len(rest)), (0, 0))), sampler


def training_batch(case, precision):
    """Return the batch of a training case as the pipeline makes it, and the sampler's outputs by the case's names."""
    keys = case.config["img_keys"]
    chosen = [positives_of(case, number) for number in range(len(keys))]
    count = max(len(boxes) for boxes, *_ in chosen)
    found = chosen[0][2] | chosen[1][2]
    batch = {
        "video": channels_last(case["in/imgs"]),
        # RoIAlign computes its coordinates in the type of the boxes.
        "boxes": np.stack([np.pad(boxes, ((0, count - len(boxes)), (0, 0))) for boxes, *_ in chosen]).astype(precision),
        "labels": np.stack([np.pad(labels, ((0, count - len(labels)), (0, 0))) for _, labels, *_ in chosen]),
        **windows_of(case, keys, count),
    }
    return batch, found


def loss_of(model):
    """Return the loss of a detector, in the form of `Task.loss_fn`."""

    def loss_fn(params, model_state, batch, key):
        inputs = {name: batch[name] for name in ("video", "boxes", "rows", "slots") if name in batch}
        outputs, updates = model.apply({"params": params, **model_state}, **inputs, train=True, mutable=["batch_stats"])
        loss, reports = action_loss(outputs["logits"], batch["labels"])
        return loss, Aux(reports | {"logits": outputs["logits"]}, {**model_state, **updates})

    return loss_fn


@precise
def check_detector_train(case, precision):
    batch, found = training_batch(case, precision)
    variables = variables_of(case, precision)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    step = jax.jit(jax.value_and_grad(loss_of(detector(case.config["kind"])), has_aux=True))
    (loss, aux), gradients = step(params, state, batch, None)
    found["loss/loss_action_cls"] = loss
    reports = dict(aux.metrics)
    counts = [len(case[f"in/proposals/{clip}"]) + len(case[f"in/gt_bboxes/{clip}"]) for clip in (0, 1)]
    logits = reports.pop("logits")
    found["out/cls_score"] = np.concatenate([own[:count] for own, count in zip(logits, counts, strict=True)])
    found |= {f"loss/{name}": value for name, value in reports.items()}
    gradients = interop.to_state_dict({"params": gradients})
    found |= {f"gradnorm/{name}": np.linalg.norm(gradient) for name, gradient in gradients.items()}
    found |= {name: gradients[name[len("grad/") :]] for name in case.arrays if name.startswith("grad/")}
    after = interop.to_state_dict({"batch_stats": aux.model_state["batch_stats"]})
    found |= {name: after[name[len("out/bn_after/") :]] for name in case.arrays if name.startswith("out/bn_after/")}
    wanted = {name for name in case.arrays if not name.startswith("in/")}
    assert wanted <= set(found), wanted - set(found)
    check(case, {name: found[name] for name in wanted}, precision)


@precise
def check_sgd_trajectory(case, precision):
    wanted = default_config()
    wanted.optimizer.clip_norm = case.config["clip_max_norm"]
    schedule = make_schedule(wanted.schedule, 100 * case.config["epoch_length"], case.config["epoch_length"])
    batch, _ = training_batch(case, precision)
    variables = variables_of(case, precision)
    optimizer = make_optimizer(wanted.optimizer, schedule, variables["params"])
    state = create_state(variables, optimizer, jax.random.key(0), ema=False)
    task = types.SimpleNamespace(loss_fn=loss_of(detector("nl")))
    step = jax.jit(make_train_step(task, optimizer, schedule, clip_norm=wanted.optimizer.clip_norm))
    found = {name: [] for name in ("loss", "lr", "grad_norm_before_clip")}
    for _ in range(len(case["traj/loss"])):
        state, metrics = step(state, batch)
        for ours, theirs in (("loss", "loss"), ("learning_rate", "lr"), ("gradient_norm", "grad_norm_before_clip")):
            found[theirs].append(np.asarray(metrics[ours]))
    found = {f"traj/{name}": np.stack(values) for name, values in found.items()}
    before = interop.to_state_dict(variables)
    after = interop.to_state_dict({"params": state.params, "batch_stats": state.model_state["batch_stats"]})
    for name in case.arrays:
        kind, _, rest = name.removeprefix("out/").partition("/")
        if kind == "after":
            found[name] = after[rest]
        elif kind == "delta_norm":
            found[name] = np.linalg.norm(np.asarray(after[rest], np.float64) - np.asarray(before[rest], np.float64))
        elif kind == "norm_after":
            found[name] = np.linalg.norm(after[rest])
    wanted = {name for name in case.arrays if not name.startswith("in/")}
    assert wanted == set(found), wanted ^ set(found)
    check(case, found, precision)


@precise
def check_bbox_head_loss(case, precision):
    labels = np.pad(case["in/pos_labels"], ((0, len(case["in/cls_score"]) - len(case["in/pos_labels"])), (0, 0)))
    variants = {
        "bce": {},
        "focal": {"focal_alpha": 3.0, "focal_gamma": 1.0},
        "single": {"multilabel": False},
        "nobg": {"background_class": False},
    }
    found = {}
    for name, options in variants.items():

        def loss_of(logits, options=options):
            return action_loss(logits[None], labels[None], **options)

        (loss, reports), gradient = jax.value_and_grad(loss_of, has_aux=True)(jnp.asarray(case["in/cls_score"]))
        found[f"loss/{name}/loss_action_cls"], found[f"grad/{name}/cls_score"] = loss, gradient
        found |= {f"loss/{name}/{report}": value for report, value in reports.items()}
    assert set(found) == {name for name in case.arrays if not name.startswith("in/")}
    check(case, found, precision)


CHECKERS = {
    "slowonly_forward": check_slowonly_forward,
    "roi_align": check_roi_align,
    "roi_extractor": check_roi_extractor,
    "fbo_nl": check_fbo_nl,
    "fbo_avg_max": check_fbo_avg_max,
    **{f"detector_{kind}_eval": check_detector_eval for kind in ("nl", "avg", "max", "base")},
    **{f"detector_{kind}_train": check_detector_train for kind in ("nl", "base")},
    "sgd_trajectory": check_sgd_trajectory,
    "bbox_head_loss": check_bbox_head_loss,
}

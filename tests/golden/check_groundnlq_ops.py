"""Checkers of the golden cases of groundnlq that need no model: losses, labels, decoding, scores, rates."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.config import base_config
from vlm_jax.metrics import moments as metrics
from vlm_jax.ops import nms
from vlm_jax.systems.groundnlq.decoding import Decoding, Moments, candidates, decode, suppress
from vlm_jax.systems.groundnlq.ensemble import ensemble, fuse_first
from vlm_jax.systems.groundnlq.loss import centre_iou, distance_iou, sigmoid_focal
from vlm_jax.systems.groundnlq.point_labels import assign, points
from vlm_jax.train.schedule import make_schedule


def assert_close(ours, reference, tolerance, name=""):
    """Assert that every number is within `atol + rtol * |reference|` of the reference."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, expected {reference.shape}"
    allowed = tolerance.get("atol", 0) + tolerance.get("rtol", 0) * np.abs(reference)
    excess = (np.abs(ours - reference) / np.maximum(allowed, 1e-300)).max(initial=0)
    assert excess <= 1, f"{name}: error {excess:.2f} times the tolerance"


def check_losses(case, precision):
    logits, target, smooth = case["in/logits"], case["in/target"], case["in/target_smooth"]
    tolerance = case.tolerance
    assert_close(sigmoid_focal(logits, target, -1, 1), case["out/focal_no_alpha_gamma1"], tolerance["out"])
    for name, labels in (("hard", target), ("smooth", smooth)):
        assert_close(sigmoid_focal(logits, labels), case[f"out/focal_{name}"], tolerance["out"], name)
        loss, gradient = jax.value_and_grad(lambda x, y=labels: sigmoid_focal(x, y).sum())(logits)
        assert_close(loss, case[f"loss/focal_{name}_sum"], tolerance["loss"], name)
        assert_close(gradient, case[f"grad/focal_{name}"], tolerance["grad"], name)
    offsets, wanted = case["in/pred_offsets"], case["in/gt_offsets"]
    for name, function in (("giou", centre_iou), ("diou", distance_iou)):
        assert_close(function(offsets, wanted), case[f"out/{name}"], tolerance["out"], name)
        loss, gradient = jax.value_and_grad(lambda x, f=function: f(x, wanted[5:]).sum())(offsets[5:])
        assert_close(loss, case[f"loss/{name}_sum_from_row5"], tolerance["loss"], name)
        assert_close(gradient, case[f"grad/{name}_from_row5"], tolerance["grad"], name)


def check_label_assignment(case, precision):
    table = points(case.config["T"], case.config["regression_range"])
    np.testing.assert_array_equal(table, case["out/points"])
    released = np.split(points(2560), np.cumsum([2560 >> level for level in range(6)]))
    np.testing.assert_array_equal(np.concatenate([level[:3] for level in released]), case["out/released_points_head"])
    np.testing.assert_array_equal(np.concatenate([level[-2:] for level in released]), case["out/released_points_tail"])
    radius = {"radius": case.config["center_sample_radius"], "none": 0}
    checked = [name for name in case.group("out/") if name.endswith("/positive")]
    assert checked
    for name in checked:
        mode, item, _ = name.split("/")
        classes, offsets = assign(table, case[f"in/{item}"], radius=radius[mode])
        np.testing.assert_array_equal(classes[:, 0] > 0, case[f"out/{name}"], err_msg=name)
        assert_close(offsets, case[f"out/{mode}/{item}/offsets"], case.tolerance["out"], name)
    one_hot = case["in/two_class_labels"]
    labels = one_hot.argmax(1) if one_hot.ndim == 2 else one_hot
    classes, offsets = assign(table, case["in/two_class_segments"], labels, classes=2)
    np.testing.assert_array_equal(classes, case["out/two_class_targets"])
    assert_close(offsets * (classes.sum(1) > 0)[:, None], case["out/two_class_offsets"], case.tolerance["out"])


def check_nms(case, precision):
    """Check suppression, with the smaller set padded to the size of the larger: both share one compiled program."""
    out = case.tolerance["out"]
    padded = len(case["in/medium/scores"])
    for size in ("small", "medium"):
        count = len(case[f"in/{size}/scores"])
        segments, scores, labels = (
            jnp.zeros((padded, *case[f"in/{size}/{name}"].shape[1:])).at[:count].set(case[f"in/{size}/{name}"])
            for name in ("segs", "scores", "labels3")
        )
        every = jnp.arange(padded) < count
        alone = case.group(f"out/{size}/")
        for name in [name for name in alone if name.endswith("/index")]:
            check_operator(name, segments, scores, every, alone, out)
        for name, settings in case.config["batched"].items():
            there = every & ~(settings["drops_row_5"] & (jnp.arange(padded) == 5))
            ours = kept(Moments(segments, scores, jnp.zeros(padded, jnp.int32), there), 1, settings)
            assert_close(ours.segments, alone[f"batched_{name}/segs"], out, name)
            assert_close(ours.scores, alone[f"batched_{name}/scores"], out, name)
        found = Moments(segments, scores, labels.astype(jnp.int32), every)
        ours = kept(found, 3, case.config["batched"]["released"])
        np.testing.assert_array_equal(ours.labels, alone["batched_3class/labels"])
        assert_close(ours.segments, alone["batched_3class/segs"], out, "3 classes")
        assert_close(ours.scores, alone["batched_3class/scores"], out, "3 classes")
        voters = every & (jnp.arange(padded) != 5)
        assert_close(nms.vote(segments[:4], segments, scores, voters, 0.4), alone["voting_alone"], out, "voting")


@jax.jit
def hard(segments, scores, mask, threshold):
    return nms.greedy(segments, scores, mask, lambda shared: shared < threshold, len(scores), epsilon=1e-6)


@functools.partial(jax.jit, static_argnames="decay")
def soft(segments, scores, mask, decay, **options):
    return nms.soft(segments, scores, mask, len(scores), decay=decay, **options)


def check_operator(name, segments, scores, every, alone, tolerance):
    """Check one call of a suppression operator.

    Names are such as `hard_iou0.1/index`, or `soft_method2_sigma0.5_min0.001_iou0.1/index` with its `dets`.
    """
    parts = name.removesuffix("/index").split("_")
    values = {part.rstrip("0123456789."): float(part.lstrip("abcdefghijklmnopqrstuvwxyz")) for part in parts[1:]}
    if parts[0] == "hard":
        picks = hard(segments, scores, every, values["iou"])
    else:
        options = {"sigma": values["sigma"], "min_score": values["min"], "threshold": values["iou"]}
        picks = soft(segments, scores, every, nms.DECAYS[int(values["method"])], **options)
    count = int((picks.index >= 0).sum())
    index = picks.index[:count]
    np.testing.assert_array_equal(index, alone[name], err_msg=name)
    if parts[0] == "soft":
        found = np.concatenate([segments[index], picks.score[:count, None]], 1)
        assert_close(found, alone[name.replace("/index", "/dets")], tolerance, name)


def kept(found, classes, settings):
    """Return the moments that suppression keeps under the reference's settings, without padding."""
    options = Decoding(
        suppression="soft" if settings["use_soft_nms"] else "hard",
        min_score=settings["min_score"],
        overlap=settings["iou_threshold"],
        sigma=settings["sigma"],
        max_moments=settings["max_seg_num"],
        per_class=settings["multiclass"],
        vote=settings["voting_thresh"],
    )
    return without_padding(jax.jit(suppress, static_argnums=(1, 2))(found, classes, options))


def without_padding(moments):
    return Moments(*(np.asarray(part)[np.asarray(moments.mask)] for part in moments))


def decoding(settings, video):
    """Return our options for the reference's `test_cfg` and a video's grid."""
    return Decoding(
        score_threshold=settings["pre_nms_thresh"],
        candidates_per_level=settings["pre_nms_topk"],
        duration_threshold=settings["duration_thresh"],
        suppression=settings["nms_method"],
        min_score=settings["min_score"],
        overlap=settings["iou_threshold"],
        sigma=settings["nms_sigma"],
        max_moments=settings["max_seg_num"],
        per_class=settings["multiclass_nms"],
        vote=settings["voting_thresh"],
        feature_stride=video["feat_stride"],
        shift=0.5 * video["feat_num_frames"],
        fps=video["fps"],
    )


def check_postprocess(case, precision):
    levels = range(len(case.group("in/mask_l")))
    heads = [[jnp.asarray(case[f"in/{name}_l{level}"]) for level in levels] for name in ("logits", "offsets", "mask")]
    videos = case.config["videos"]
    durations = jnp.array([video["duration"] for video in videos])
    out = case.tolerance["out"]
    for name, changes in case.config["changes"].items():
        settings = case.config["base"] | {key.removeprefix("test_"): value for key, value in changes.items()}
        options = decoding(settings, videos[0])
        found = jax.jit(decode, static_argnums=4)(*heads, durations, options)
        for number in range(len(videos)):
            ours = without_padding(jax.tree.map(lambda part, number=number: part[number], found))
            assert_close(ours.segments, case[f"out/{name}/segments_{number}"], out, f"{name} {number}")
            assert_close(ours.scores, case[f"out/{name}/scores_{number}"], out, f"{name} {number}")
    first = [[level[0] for level in parts] for parts in heads]
    ours = without_padding(candidates(*first, decoding(case.config["base"], videos[0])))
    assert_close(ours.segments, case["out/candidates_0/segments_grid"], out, "candidates")
    assert_close(ours.scores, case["out/candidates_0/scores"], out, "candidates")


def check_metric(case, precision):
    tolerance = case.tolerance["out"]
    thresholds, ks = case.config["thresholds"], case.config["topK"]
    pairs = metrics.ego4d_pairs(case.manifest["predictions"], case.manifest["ground_truth"])
    overlaps = [metrics.best_overlaps(*pair) for pair in zip(*pairs, strict=True)]
    assert_close([overlap[:1] for overlap in overlaps], case["out/top1_iou"], tolerance)
    np.testing.assert_array_equal(metrics.hits(overlaps, thresholds, ks), case["out/hits"])
    assert_close(metrics.recall_table(*pairs, thresholds, ks), case["out/recall"], tolerance)
    assert_close(metrics.mean_top_overlap(*pairs), case["out/miou"], tolerance)
    named = metrics.moment_metrics(*pairs, (0.3, 0.5), (1, 5, 10))
    table = [[named[f"R{k}@{threshold}"] for k in (1, 5, 10)] for threshold in (0.3, 0.5)]
    assert_close(table, case["out/in_training_table_percent"], tolerance)


def check_ensemble(case, precision):
    files, tolerance = case.manifest["files"], case.tolerance["out"]
    stored = [[entry["predicted_times"] for entry in file["results"]] for file in files]
    np.testing.assert_array_equal(np.array(stored), case["in/predicted_times"])
    ours = ensemble(files)
    assert_close([entry["predicted_times"] for entry in ours["results"]], case["out/predicted_times"], tolerance)
    without_times = [
        json.dumps([{**entry, "predicted_times": None} for entry in file["results"]])
        for file in (ours, case.manifest["result"])
    ]
    assert without_times[0] == without_times[1]
    for number, wanted in case.manifest["fused_top1"].items():
        assert_close(fuse_first([times[int(number)][0] for times in stored]), wanted, tolerance, number)


def schedule_of(wanted, steps_per_epoch):
    """Return our schedule for the reference's optimiser section."""
    config = base_config().schedule
    warmup = wanted["warmup_epochs"] if wanted["warmup"] else 0
    config.name, config.learning_rate = wanted["schedule_type"], wanted["learning_rate"]
    config.warmup_epochs, config.warmup_inclusive = warmup, True
    config.final_learning_rate = 1e-8 if warmup else 0.0
    config.boundary_epochs = [warmup + epoch for epoch in wanted["schedule_steps"]]
    config.decay_factor = wanted["schedule_gamma"]
    return make_schedule(config, (wanted["epochs"] + warmup) * steps_per_epoch, steps_per_epoch)


def check_schedules(case, precision):
    with jax.enable_x64(True):
        for name, wanted in case.config.items():
            rates = jax.vmap(schedule_of(wanted, wanted["iters_per_epoch"]))(np.arange(len(case[f"out/{name}"])))
            assert_close(rates, case[f"out/{name}"], case.tolerance["out"], name)


CHECKERS = {
    "losses": check_losses,
    "label_assignment": check_label_assignment,
    "nms": check_nms,
    "postprocess": check_postprocess,
    "metric": check_metric,
    "ensemble": check_ensemble,
    "schedules": check_schedules,
}

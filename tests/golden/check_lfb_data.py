"""Checkers of the golden cases of lfb that concern annotations, frames and targets."""

import tempfile
from pathlib import Path

import numpy as np
from lfb_tolerance import check

from vlm_jax.systems.lfb import annotations, augment, targets
from vlm_jax.systems.lfb.actions import read_actions
from vlm_jax.systems.lfb.annotations import Sampling


def check_ava_dataset(case, precision):
    with tempfile.TemporaryDirectory() as folder:
        check_records(case, Path(folder))


def check_records(case, folder):
    paths = {}
    for name, ending in (("annotations_csv", "a.csv"), ("excluded_csv", "e.csv"), ("labelmap_pbtxt", "l.pbtxt")):
        paths[name] = folder / ending
        paths[name].write_bytes(case[f"in/{name}"].tobytes())
    assert sorted(read_actions(paths["labelmap_pbtxt"])) == [12, 17, 79, 80]
    rows, faults = annotations.read_rows(paths["annotations_csv"], 81)
    assert not faults
    excluded = annotations.read_excluded(paths["excluded_csv"])
    proposals = {
        (name.rpartition(",")[0], int(name.rpartition(",")[2])): boxes
        for name, boxes in case.group("in/proposals/").items()
    }
    for kind, threshold, chosen in (("thr0.9", 0.9, ()), ("thr0.85", 0.85, ()), ("custom", 0.9, (17, 80))):
        keyframes = annotations.group_rows(rows, len(chosen) + 1 if chosen else 81, chosen)
        kept = [frame for frame in keyframes if frame.key not in excluded]
        names = case[f"out/{kind}/img_keys"].tobytes().decode().split()
        assert [annotations.name_of(frame.key) for frame in kept] == names
        for number, frame in enumerate(kept):
            all_boxes = annotations.proposals_of(proposals, frame.key)
            used = all_boxes[annotations.above_threshold(all_boxes[:, 4], threshold)]
            place = frame.second, case.config["timestamp_start"], Sampling().fps * 900
            shifts = case[f"in/{kind}/{number}/train_offsets"]
            found = {
                "gt_bboxes": frame.boxes,
                "gt_labels": frame.labels,
                "entity_ids": frame.people,
                "proposals": used[:, :4],
                "scores": used[:, 4],
                "frame_inds_test": Sampling().numbers(*place),
                "frame_inds_train": Sampling().numbers(*place, shifts),
            }
            check(case, {f"out/{kind}/{number}/{name}": value for name, value in found.items()})


def check_augment(case, precision):
    frames = case["in/imgs"]
    height, width = frames.shape[1:3]
    for short, *size in case["out/rescale_draws"]:
        assert list(augment.resized_size(height, width, int(short))) == size
    left, top, right, bottom = map(int, case["out/crop64/crop_bbox"])
    resized = augment.whole_view(height, width, 96)
    crop = resized._replace(top=top, left=left, rows=bottom - top, columns=right - left, cropped=True)
    views = {
        "resize40": augment.whole_view(height, width, 40),
        "resize96": resized,
        "crop64": crop,
        "flip": crop._replace(flip=True),
    }
    for name, view in views.items():
        found = {"imgs": augment.view_frames(frames, view), "img_shape": np.array([view.rows, view.columns])}
        for kind in ("gt_bboxes", "proposals"):
            shares = case[f"in/{kind}"] / np.array([width, height] * 2)
            found[kind] = augment.view_boxes(shares, height, width, view)
        check(case, {f"out/{name}/{kind}": value for kind, value in found.items()})


def check_assigner_sampler(case, precision):
    for number in range(3):
        given = {name: case[f"in/{number}/{name}"] for name in ("gt", "labels", "proposals")}
        truth, labels = given["gt"], given["labels"]
        assigned, overlaps = targets.assign(truth, given["proposals"], targets.Matching())
        permutations = [value for name, value in case.arrays.items() if name == f"in/{number}/perm0"]
        chosen = targets.sample(assigned, len(truth), 32, lambda count, drawn=permutations: drawn[0])
        check(case, {f"out/{number}/gt_inds": assigned, f"out/{number}/max_overlaps": overlaps})
        check(case, {f"out/{number}/pos_inds": chosen, f"out/{number}/pos_is_gt": chosen < len(truth)})
        sums = np.where(assigned > 0, labels.sum(1)[assigned - 1], 0)
        check(case, {f"out/{number}/assigned_label_sum": sums})

        class Drawn:
            permutation = staticmethod(lambda count, drawn=permutations: drawn[0])

        boxes, actions = targets.positives(truth, labels, given["proposals"], targets.Matching(), Drawn)
        check(case, {f"out/{number}/pos_gt_labels": actions})
        np.testing.assert_array_equal(boxes, case[f"out/{number}/priors"][: len(boxes)])


CHECKERS = {"ava_dataset": check_ava_dataset, "augment": check_augment, "assigner_sampler": check_assigner_sampler}
"""Checkers of the golden cases of lfb that need no network."""

"""Frame mAP: against a plain version of the rules, and where the two modes differ."""

import math

import numpy as np
import pytest

from vlm_jax.metrics.average_precision import average_precision
from vlm_jax.systems.lfb.detections import Table
from vlm_jax.systems.lfb.metrics import ava_map

BOX, OTHER = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def table(*rows):
    """Return the table of rows (video, second, box, action, score)."""
    keyframes = list(dict.fromkeys(row[:2] for row in rows))
    frames = np.array([keyframes.index(row[:2]) for row in rows], np.int64)
    boxes = np.array([row[2] for row in rows], np.float32).reshape(-1, 4)
    numbers = np.array([row[3:] for row in rows], np.float64).reshape(-1, 2)
    return Table(keyframes, frames, boxes, numbers[:, 0].astype(np.int64), numbers[:, 1])


def overlap(one, other):
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(width, np.float32(0)) * max(height, np.float32(0))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def plain_precision(truth, found, excluded, actions, action, official):
    """Return the AP of an action by loops, None if it does not enter the mean."""
    listed = found if official else truth
    rows = [row for each in actions for row in np.flatnonzero(listed.actions == each)]
    images = list(dict.fromkeys(listed.keyframes[listed.frames[row]] for row in sorted(rows)))
    truths = [dict(zip(("frame", "box", "rank"), row, strict=True)) for row in rows_of(truth, action)]
    if official:
        truths = [row for row in truths if row["frame"] not in excluded]
    scores, hits = [], []
    for image in images:
        if image in excluded:
            continue
        boxes = [row["box"] for row in sorted(truths, key=lambda row: -row["rank"]) if row["frame"] == image]
        claimed = set()
        mine = [row for row in rows_of(found, action) if row[0] == image]
        for _, box, score in sorted(mine, key=lambda row: -row[2]):
            overlaps = [overlap(box, each) for each in boxes]
            best = int(np.argmax(overlaps)) if boxes else -1
            hits.append(best >= 0 and overlaps[best] >= 0.5 and best not in claimed)
            claimed |= {best} if hits[-1] else set()
            scores.append(np.float32(score))
    if not scores and not (official and truths):
        return None
    return 100 * average_precision(np.array(scores), np.array(hits, bool), len(truths))


def rows_of(given, action):
    kept = np.flatnonzero(given.actions == action)
    return [(given.keyframes[given.frames[row]], given.boxes[row], given.scores[row]) for row in kept]


def random_table(rng, size, videos, decimals=1):
    low = np.round(rng.random((size, 2)) / 3, 1)
    boxes = np.concatenate([low, low + 0.3 + np.round(rng.random((size, 2)) / 3, 1)], 1)
    return table(
        *(
            (str(rng.choice(videos)), int(rng.integers(902, 906)), tuple(box), int(rng.integers(1, 6)), score)
            for box, score in zip(boxes, np.round(rng.random(size), decimals), strict=True)
        )
    )


@pytest.mark.parametrize("mode", ["reference", "official"])
@pytest.mark.parametrize("seed", range(4))
def test_all_rules_at_once_against_loops(mode, seed):
    """Few values of coordinates and scores, so that overlaps and scores are often equal."""
    rng = np.random.default_rng(seed)
    truth, found = random_table(rng, 60, ["a", "b", "c"]), random_table(rng, 300, ["a", "b", "d"], 1 + seed % 2 * 3)
    excluded, actions = {("a", 902), ("c", 903), ("d", 904)}, {1: "x", 2: "y", 4: "z", 9: "none"}
    metrics = ava_map(truth, found, excluded, actions, mode)
    plain = {action: plain_precision(truth, found, excluded, actions, action, mode == "official") for action in actions}
    expected = {f"AP/{action} {actions[action]}": value for action, value in plain.items() if value is not None}
    assert {name: value for name, value in metrics.items() if name.startswith("AP/")} == pytest.approx(expected)
    assert metrics["mAP"] == pytest.approx(np.mean(list(expected.values())))


TRUTH = table(("v", 902, BOX, 1, 0), ("v", 902, BOX, 20, 0), ("v", 902, BOX, 64, 0), ("v", 903, BOX, 1, 0))
ACTIONS = {1: "sit", 14: "walk", 15: "answer phone", 20: "climb", 64: "listen", 80: "watch"}


def both(found, excluded=()):
    return [ava_map(TRUTH, found, set(excluded), ACTIONS, mode) for mode in ("reference", "official")]


def test_an_action_without_detections_counts_in_the_official_mean_only():
    ours, official = both(table(("v", 902, BOX, 1, 0.9), ("v", 903, BOX, 1, 0.8)))
    assert ours["mAP"] == 100
    assert official["mAP"] == pytest.approx(100 / 3)
    assert "AP/20 climb" not in ours
    assert official["AP/20 climb"] == 0
    assert math.isnan(ours["mAP/object_manipulation"])
    assert official["mAP/object_manipulation"] == 0
    assert ours["mAP/person_movement"] == 100
    assert official["mAP/person_interaction"] == 0


def test_an_annotation_on_an_excluded_keyframe_stays_to_be_found_in_the_reference_only():
    ours, official = both(table(("v", 902, BOX, 1, 0.9), ("v", 903, BOX, 1, 0.95)), [("v", 903)])
    assert ours["AP/1 sit"] == 50
    assert official["AP/1 sit"] == 100


def test_a_detection_on_a_keyframe_without_annotations_counts_in_the_official_mode_only():
    rows = [("v", 902, BOX, 1, 0.9), ("v", 903, BOX, 1, 0.8), ("w", 902, BOX, 1, 0.95)]
    ours, official = both(table(*rows))
    assert ours["AP/1 sit"] == 100
    assert official["AP/1 sit"] == pytest.approx(100 * 2 / 3)
    counted = ava_map(TRUTH, table(*rows), (), ACTIONS, ignore_empty_frames=False)
    assert counted["AP/1 sit"] == pytest.approx(100 * 2 / 3)


def test_an_action_without_annotations_has_no_precision_and_does_not_enter_the_mean():
    for metrics in both(table(("v", 902, BOX, 1, 0.9), ("v", 903, BOX, 1, 0.9), ("v", 902, BOX, 80, 0.9))):
        assert math.isnan(metrics["AP/80 watch"])
        assert metrics["mAP/person_movement"] == 100


def test_a_second_detection_of_a_box_is_wrong_and_has_no_second_choice():
    found = table(("v", 902, BOX, 1, 0.9), ("v", 902, BOX, 1, 0.8), ("v", 903, OTHER, 1, 0.7))
    for metrics in both(found):
        assert metrics["AP/1 sit"] == 50


def test_boxes_without_area_and_tables_without_a_common_keyframe():
    flat = table(("v", 902, (0.2, 0.2, 0.2, 0.9), 1, 0.9))
    for truth, found in ((TRUTH, flat), (flat, flat), (TRUTH, table(("w", 1, BOX, 1, 1.0)))):
        metrics = ava_map(truth, found, (), ACTIONS, "official")
        assert metrics["AP/1 sit"] == 0
    assert math.isnan(ava_map(TRUTH, table(("w", 1, BOX, 1, 1.0)), (), ACTIONS)["mAP"])


def test_an_unknown_mode():
    with pytest.raises(ValueError, match="mode 'paper' is not one of reference, official"):
        ava_map(TRUTH, TRUTH, (), ACTIONS, "paper")
